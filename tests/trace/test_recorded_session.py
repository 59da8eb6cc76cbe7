"""A session of our two sides through the proxy, written down as it passes: both formats, and tshark, tell what happened."""

from __future__ import annotations

import os
import socket
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from tests.shmem.conftest import PAGE, SIZES
from tests.wire.devices import Scripted
from vhostuser import Frontend, MapRequest
from vhostuser.testing import DEADLINE, Served
from vhostuser.trace.capture import create_capture, open_capture
from vhostuser.trace.conversation import Exchange
from vhostuser.trace.event import Event, Message
from vhostuser.trace.meaning import understood
from vhostuser.trace.proxy import Proxy

from .building import items_of
from .shark import Shark, shark_tank
from .test_dissector import expected, packets, payload_fields

MAPS = 20


@pytest.fixture(scope="module")
def session(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, list[Event]]:
    """A folder with a.pcapng and a.jsonl, and what was written to both while a device mapped and unmapped."""
    folder, events = tmp_path_factory.mktemp("session"), list[Event]()
    writers = [create_capture(folder / name) for name in ("a.pcapng", "a.jsonl")]

    def sink(event: Event) -> None:
        events.append(event)
        for writer in writers:
            writer.write(event)

    device = Scripted(regions=SIZES)
    served, (ours, front) = Served(device), socket.socketpair()
    proxy = Proxy(front, served.connected(), sink)
    thread = threading.Thread(target=proxy.run, name="proxy")
    thread.start()
    try:
        with Frontend(ours) as frontend:
            use(frontend, device)
    finally:
        thread.join(DEADLINE)
        served.stop()
        for writer in writers:
            writer.close()
    return folder, events


def use(frontend: Frontend, device: Scripted) -> None:
    """Let the device map and unmap while the front-end serves it."""
    frontend.share_memory(1 << 20)
    frontend.start_queue(0, size=16)
    if not device.ready.wait(DEADLINE):
        raise AssertionError("the driver is not ready")
    fd = os.memfd_create("pages")
    try:
        os.ftruncate(fd, MAPS * PAGE)
        with ThreadPoolExecutor(1) as pool:
            requests = [MapRequest(fd, 2 * at * PAGE, PAGE) for at in range(MAPS)]
            done = pool.submit(device.shm[7].map_many, requests)
            while not done.done():
                frontend.serve(0.01)
            done.result()
    finally:
        os.close(fd)
    frontend.reset()


@pytest.fixture(scope="module")
def shark() -> Iterator[Shark]:
    with shark_tank() as found:
        yield found


def test_both_formats_hold_exactly_what_passed(session: tuple[Path, list[Event]]) -> None:
    folder, events = session
    for name in ("a.pcapng", "a.jsonl"):
        assert list(open_capture(folder / name)) == events


def test_each_message_by_itself_says_what_it_says_in_the_conversation(session: tuple[Path, list[Event]]) -> None:
    _, events = session
    exchanges = [item for item in items_of(events) if isinstance(item, Exchange)]
    decoded = [each for exchange in exchanges for each in (exchange.request, exchange.reply) if each]
    assert len(decoded) == sum(isinstance(event, Message) for event in events)
    for each in decoded:
        by_itself = understood(each.message, each.index)
        assert (by_itself.name, by_itself.fault, by_itself.values()) == (each.name, each.fault, each.values())


def test_tshark_sees_every_field_of_every_message(session: tuple[Path, list[Event]], shark: Shark) -> None:
    _, events = session
    messages = [event for event in events if isinstance(event, Message)]
    for message, seen in zip(messages, packets(shark, messages), strict=True):
        assert payload_fields(seen) == expected(understood(message, 0))


def test_tshark_joins_every_map_with_its_answer(session: tuple[Path, list[Event]], shark: Shark) -> None:
    folder, events = session
    path = shark.file((folder / "a.pcapng").read_bytes(), "session.pcapng")
    shown = ("vhostuser.shmem_map.shm_offset", "vhostuser.shmem_map.len", "vhostuser.fd.kind", "vhostuser.reply_in")
    rows = shark.table(path, *shown, filter="vhostuser.shmem_map.len")
    assert [(int(offset, 0), int(length, 0), kind) for offset, length, kind, _ in rows] == [
        (2 * at * PAGE, PAGE, "memfd") for at in range(MAPS)
    ]
    answers = [events[int(reply) - 1] for *_, reply in rows]
    assert all(isinstance(answer, Message) and not answer.asks and answer.request == 9 for answer in answers)
    assert shark.table(path, "frame.number", filter="vhostuser.malformed || vhostuser.refused") == []
