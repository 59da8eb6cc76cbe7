"""One side of a recorded session against a live peer."""

from __future__ import annotations

import contextlib
import socket
import threading
from collections.abc import Callable, Collection, Iterator, Sequence
from dataclasses import replace
from pathlib import Path

import pytest

from tests.drivers.devices import Disk
from vhostuser import Device, Frontend
from vhostuser.devices.shm import MappedFiles, Placement
from vhostuser.drivers.blk import FEATURES, BlockDriver
from vhostuser.errors import Disconnected, RemoteProtocolError
from vhostuser.protocol.numbers import PAGE, BackendRequest
from vhostuser.protocol.numbers import FrontendRequest as Q
from vhostuser.protocol.payloads import HEADER, U64, Mmap
from vhostuser.protocol.rules import Channel
from vhostuser.protocol.state import Role
from vhostuser.testing import DEADLINE, RawBackend, Served, leaving_nothing, memory_file, message, wait_until
from vhostuser.trace.describe import described
from vhostuser.trace.differences import Difference
from vhostuser.trace.event import Event, FdNote, Message
from vhostuser.trace.replay import Replay
from vhostuser.trace.stand_ins import StandIns
from vhostuser.transport.fds import close_all

from .building import Wire
from .recording import messages, recorded

ADDRESSES = ("user_addr", "descriptor", "used", "available", "mmap_offset")


def session_with(device: Device, use: Callable[[Frontend], object]) -> list[Event]:
    """What passes between a front-end that does something and a back-end that serves the device."""
    with (
        serving(device) as served,
        recorded(served.connected()) as (ours, events),
        Frontend(ours, features=FEATURES) as frontend,
    ):
        use(frontend)
    return events


def disk_session(frontend: Frontend) -> None:
    frontend.share_memory(1 << 20)
    driver = BlockDriver(frontend, size=16)
    assert driver.read(3, 1)[:4] == (3).to_bytes(4, "little")
    frontend.stop_queue(0)


def shm_session(count: int) -> Callable[[Frontend], None]:
    """A front-end that starts a queue, and waits until `count` files are mapped."""

    def use(frontend: Frontend) -> None:
        frontend.share_memory(1 << 20)
        frontend.start_queue(0, size=16)
        wait_until(lambda: _mapped(frontend) == count, f"{count} files are mapped")

    return use


def _mapped(frontend: Frontend) -> int:
    frontend.serve(0.01)
    return len(frontend.shm[0].mappings)


@contextlib.contextmanager
def serving(device: Device) -> Iterator[Served]:
    """A back-end of a device, which is closed in the end if it can be."""
    served = Served(device)
    try:
        yield served
    finally:
        served.stop()
        if isinstance(device, MappedFiles):
            device.close()


def told(events: list[Event], device: Device, *, ignored: Collection[str] = (), timeout: float = DEADLINE) -> list[str]:
    """What a back-end of `device` does differently."""
    with (
        serving(device) as served,
        Replay(events, Role.FRONTEND, served.connected(), ignored=ignored, timeout=timeout) as play,
    ):
        found = [str(each) for each in play.differences()]
        assert found or play.played == len(messages(events))
        return found


@pytest.fixture
def files(tmp_path: Path) -> list[Placement]:
    """Two files, and where they go."""
    found = []
    for number, name in enumerate(("alpha", "beta")):
        path = tmp_path / name
        path.write_bytes(name.encode() * PAGE)
        found.append(Placement(0, number << 20, str(path)))
    return found


def shm(files: list[Placement]) -> MappedFiles:
    return MappedFiles({0: 4 << 20}, files)


# As the front-end


def test_the_same_back_end_does_the_same() -> None:
    events = session_with(Disk(), disk_session)
    assert len(messages(events)) > 20
    with leaving_nothing():
        assert told(events, Disk(), ignored=["num"]) == []


def test_no_driver_asks_for_anything_in_a_replay() -> None:
    events = session_with(Disk(), disk_session)
    (found,) = told(events, Disk())
    assert found.endswith(": GET_VRING_BASE num recorded 1, now 0")


def test_both_channels_are_played(files: list[Placement]) -> None:
    events = session_with(shm(files), shm_session(2))
    maps = [each for each in messages(events) if each.channel is Channel.BACKEND]
    assert [each.sender for each in maps].count(Role.BACKEND) == 2
    with leaving_nothing():
        assert told(events, shm(files)) == []


def test_a_file_that_is_mapped_elsewhere_is_the_difference(files: list[Placement]) -> None:
    events = session_with(shm(files), shm_session(2))
    moved = [files[0], replace(files[1], shm_offset=2 << 20)]
    index = [at for at, each in enumerate(events) if isinstance(each, Message) and _maps(each)][1]
    assert told(events, shm(moved)) == [f"message {index}: SHMEM_MAP shm_offset recorded 0x100000, now 0x200000"]
    assert told(events, shm(moved), ignored=["shm_offset"]) == []


def _maps(each: Message) -> bool:
    return each.asks and (each.channel, each.request) == (Channel.BACKEND, BackendRequest.SHMEM_MAP)


def test_a_disk_of_another_size_is_the_difference() -> None:
    events = session_with(Disk(), disk_session)
    (found,) = told(events, Disk(sectors=512), ignored=["num"])
    assert found.startswith("message ")
    assert ": GET_CONFIG payload recorded 0001000000000000" in found
    assert ", now 0002000000000000" in found


def test_a_message_that_does_not_come_is_the_difference(files: list[Placement]) -> None:
    events = session_with(shm(files), shm_session(2))
    (found,) = told(events, shm(files[:1]), timeout=0.2)
    assert "SHMEM_MAP recorded from the back-end, now nothing in 0.2 s" in found


@pytest.mark.parametrize("waiting", [False, True])
def test_what_was_asked_for_in_a_ring_is_told_so(waiting: bool) -> None:
    """Unless the front-end waited for an answer then, with which it may have to do."""
    wire = Wire()
    ask, answer = wire.ask(Q.GET_QUEUE_NUM), wire.answer(Q.GET_QUEUE_NUM, U64(1))
    mapped = messages(wire.map(0, PAGE))
    events = [*begun(wire), *([ask, *mapped, answer] if waiting else [ask, answer, *mapped, wire.ask(Q.SET_OWNER)])]
    (found,) = (each for each in told_by_raw(events, lambda raw: None, timeout=0.2) if not each.field)
    assert (found.name, found.now) == ("SHMEM_MAP", "nothing in 0.2 s")
    ring = "; it may have been asked for in a ring, for which a replay has no driver"
    assert str(found).endswith("now nothing in 0.2 s" + ("" if waiting else ring))


def test_a_message_more_is_the_difference() -> None:
    wire = Wire()
    events = [*begun(wire), wire.ask(Q.GET_QUEUE_NUM), wire.answer(Q.GET_QUEUE_NUM, U64(1))]
    more = message(BackendRequest.SHMEM_UNMAP, Mmap(0, 0, PAGE, PAGE))
    found = told_by_raw(events, lambda raw: raw.channel.send(more))
    (besides,) = (each for each in found if not each.field)
    assert besides.index in (len(events) - 1, len(events)), "before the reply that was due, or behind it"
    assert str(besides).endswith(": SHMEM_UNMAP recorded nothing, now shmid=0 fd_offset=0 shm_offset=4096 len=4096 flags=0")


def begun(wire: Wire) -> list[Message]:
    """Messages until both channels are there."""
    asks = wire.ask(Q.SET_BACKEND_REQ_FD)
    return [*messages(wire.agreed()), replace(asks, fds=(FdNote(3, "socket"),))]


def told_by_raw(
    events: Sequence[Event], first: Callable[[RawBackend], object], *, timeout: float = DEADLINE
) -> list[Difference]:
    """What a back-end does differently that does something before it answers GET_QUEUE_NUM."""

    def answer(frame: object) -> bytes:
        first(raw)
        return message(Q.GET_QUEUE_NUM, U64(1), flags=5)

    with RawBackend() as raw:
        raw.raw_answers[Q.GET_QUEUE_NUM] = answer
        raw._thread.start()
        with Replay(events, Role.FRONTEND, raw.theirs.dup(), timeout=timeout) as play:
            return list(play.differences())


def test_a_request_in_place_of_another_ends_it() -> None:
    wire = Wire()
    events: list[Event] = [wire.ask(Q.GET_FEATURES), wire.answer(Q.GET_QUEUE_NUM, U64(1)), wire.ask(Q.SET_OWNER)]
    assert told(events, Disk()) == ["message 1: GET_QUEUE_NUM recorded request 17, now request 1"]


def test_answers_do_not_wait_for_the_other_channel() -> None:
    """The back-end may ask before it answers, whatever the order was then: it gets its answer, so that it can go on."""
    wire = Wire()
    exchange = [wire.ask(Q.GET_QUEUE_NUM), wire.answer(Q.GET_QUEUE_NUM, U64(1))]
    asks, says = messages(wire.map(0, PAGE))
    said: list[int] = []

    def ask_first(raw: RawBackend) -> None:
        with memory_file() as file:
            said.append(raw.channel.status(BackendRequest.SHMEM_MAP, asks.payload, fds=[file]))

    found = told_by_raw([*begun(wire), *exchange, asks, says], ask_first)
    assert said == [0]
    assert {each.name for each in found} == {"GET_FEATURES", "GET_PROTOCOL_FEATURES"}


def test_a_back_end_that_goes_is_gone() -> None:
    ours, theirs = socket.socketpair()
    events = session_with(Disk(), disk_session)
    theirs.close()
    with Replay(events, Role.FRONTEND, ours) as play, pytest.raises(Disconnected, match="GET_FEATURES"):
        list(play.differences())


def test_what_came_before_the_end_is_taken() -> None:
    """Both channels end at once: an acknowledgement that is on its way on one of them came in time."""
    wire = Wire()
    events = [*begun(wire), *messages(wire.map(0, PAGE))]
    ours, theirs = socket.socketpair()
    with theirs, Replay(events, Role.BACKEND, ours, timeout=DEADLINE) as play:
        channel, given = socket.socketpair()
        with channel, given:
            for each in events[:-3]:
                if each.sender is Role.FRONTEND:
                    theirs.sendall(each.data)
            socket.send_fds(theirs, [events[-3].data], [given.fileno()])
            channel.sendall(events[-1].data)
            theirs.shutdown(socket.SHUT_WR)
            assert [str(each) for each in play.differences()] == []
        assert play.played == len(events)


def test_a_header_that_is_wrong_breaks_the_protocol() -> None:
    ours, theirs = socket.socketpair()
    wire = Wire()
    events = [wire.ask(Q.GET_FEATURES), wire.answer(Q.GET_FEATURES, U64(0))]
    with theirs, Replay(events, Role.FRONTEND, ours) as play:
        theirs.sendall(HEADER.pack(1, 2, 0))
        with pytest.raises(RemoteProtocolError, match="version"):
            list(play.differences())


# As the back-end


def test_the_same_front_end_does_the_same(files: list[Placement]) -> None:
    """The real front-end maps what the recorded back-end asks it to, from stand-ins of the files."""
    events = session_with(shm(files), shm_session(2))
    ours, theirs = socket.socketpair()
    found: list[str] = []

    def play_back() -> None:
        with Replay(events, Role.BACKEND, theirs, ignored=ADDRESSES, timeout=DEADLINE) as play:
            found.extend(str(each) for each in play.differences())

    with leaving_nothing():
        thread = threading.Thread(target=play_back)
        thread.start()
        with Frontend(ours, features=FEATURES) as frontend:
            shm_session(2)(frontend)
            assert [each.shm_offset for each in frontend.shm[0].mappings] == [0, 1 << 20]
            assert frontend.shm[0].read(0, 5) == bytes(5)
        thread.join(DEADLINE)
    assert found == []


def test_a_front_end_that_asks_for_more_is_the_difference() -> None:
    events = session_with(Disk(), lambda frontend: None)
    ours, theirs = socket.socketpair()
    found: list[Difference] = []

    def play_back() -> None:
        with Replay(events, Role.BACKEND, theirs, timeout=DEADLINE) as play:
            found.extend(play.differences())

    thread = threading.Thread(target=play_back)
    thread.start()
    with Frontend(ours, features=FEATURES) as frontend, pytest.raises(Disconnected):
        frontend.share_memory(1 << 20)
    thread.join(DEADLINE)
    assert [(each.name, each.recorded) for each in found] == [("SET_MEM_TABLE", "nothing")]


# Stand-ins


def note(
    kind: str, size: int = 0, *, ino: int = 1, path: str = "", access: str = "rw", seals: tuple[str, ...] = ()
) -> FdNote:
    return FdNote(3, kind, path, 1, ino, size, access, seals)


def stand_in(stand_ins: StandIns, *notes: FdNote) -> list[FdNote]:
    """What stands in for some fds, as it would be written down."""
    fds = stand_ins.for_message(replace(Wire().ask(Q.SET_MEM_TABLE), fds=notes))
    try:
        return [described(fd.fileno()) for fd in fds]
    finally:
        close_all(fds)


@pytest.mark.parametrize("kind", ["eventfd", "memfd", "file", "socket", "pipe", "directory", "device", "dma-buf", "other"])
def test_an_fd_has_a_stand_in_and_nothing_is_left(kind: str) -> None:
    with leaving_nothing():
        stand_ins = StandIns()
        (found,) = stand_in(stand_ins, note(kind, PAGE))
        stand_ins.close()
    assert found.kind == {"file": "memfd", "directory": "device", "dma-buf": "device", "other": "device"}.get(kind, kind)


def test_a_file_is_the_same_file_again() -> None:
    stand_ins = StandIns()
    first, other, again, larger = stand_in(
        stand_ins, note("memfd", PAGE), note("memfd", PAGE, ino=2), note("memfd", PAGE, access="r"), note("memfd", 2 * PAGE)
    )
    stand_ins.close()
    assert first.ino == again.ino == larger.ino != other.ino
    assert (first.access, again.access) == ("rw", "r")
    assert (first.size, larger.size) == (2 * PAGE, 2 * PAGE)


def test_memory_is_sealed_as_it_was() -> None:
    stand_ins = StandIns()
    (found,) = stand_in(stand_ins, note("memfd", PAGE, seals=("shrink", "grow", "seal", "exec")))
    stand_ins.close()
    assert set(found.seals) == {"shrink", "grow", "seal"}


@pytest.mark.parametrize("size", [4, 5])
def test_a_file_of_then_is_opened_if_it_is_the_same_size(tmp_path: Path, size: int) -> None:
    path = tmp_path / "file"
    path.write_bytes(b"1234")
    stand_ins = StandIns(files=True)
    (found,) = stand_in(stand_ins, note("file", size, path=str(path)))
    stand_ins.close()
    assert (found.kind, found.access) == (("file", "r") if size == 4 else ("memfd", "rw"))
