"""P19: an exception in a device's code fails that request, is logged once, and leaves all else alive."""

from __future__ import annotations

import logging
import socket
from collections.abc import Callable

import pytest

from tests.wire.devices import Scripted
from vhostuser import Backend, DescriptorChain, MapRequest, RequestFailed
from vhostuser.protocol.numbers import FrontendRequest, ProtocolFeature, VhostFeature
from vhostuser.protocol.payloads import U64, Config
from vhostuser.testing import RawFrontend, joined, message, sparse_file

PAGE = 4096
FIRST = b"".join(
    (
        message(FrontendRequest.GET_FEATURES),
        message(FrontendRequest.SET_PROTOCOL_FEATURES, U64(1 << ProtocolFeature.CONFIG)),
        message(FrontendRequest.SET_FEATURES, U64(1 << VhostFeature.PROTOCOL_FEATURES)),
    )
)


class Faulty(Scripted):
    """Raises wherever it is told to."""

    faults: frozenset[str] = frozenset()
    kind: type[BaseException] = ZeroDivisionError

    def _fail(self, where: str) -> None:
        if where in self.faults:
            raise self.kind(f"a bug in {where}")

    def process(self, queue: int, chain: DescriptorChain) -> None:
        self._fail("process")
        super().process(queue, chain)

    def driver_ready(self) -> None:
        super().driver_ready()
        self._fail("driver_ready")

    def reset(self) -> None:
        super().reset()
        self._fail("reset")

    def write_config(self, offset: int, data: bytes) -> None:
        self._fail("write_config")
        self.written.append((offset, data))

    def takes(self, queue: int) -> bool:
        if "takes" in self.faults:
            self.faults = frozenset()
            self.resume(queue)
            raise self.kind("a bug in takes")
        return True


@pytest.mark.parametrize("kind", [ZeroDivisionError, SystemExit, KeyboardInterrupt, GeneratorExit])
@pytest.mark.parametrize("where", ["process", "takes", "driver_ready", "reset", "write_config"])
def test_p19_one_place_fails_and_the_rest_lives(
    where: str, kind: type[BaseException], caplog: pytest.LogCaptureFixture
) -> None:
    """In a thread that is not the main one nothing of a device's ends it, not even what ends a program."""
    device = Faulty()
    device.kind = kind
    device.faults = frozenset({where})
    with joined(device) as both, sparse_file(PAGE) as file:
        frontend = both.frontend
        frontend.share_memory(1 << 20)
        queue = frontend.start_queue(0, size=16)
        assert device.ready.wait(10)
        assert queue.exchange(b"ping", 4) == (b"" if where == "process" else b"ping")
        if where == "write_config":
            with pytest.raises(RequestFailed):
                frontend.request(FrontendRequest.SET_CONFIG, Config(0, 1, 0, b"x"))
        frontend.reset()
        device.faults = frozenset()
        queue = frontend.start_queue(0, size=16)
        assert device.ready.wait(10)
        assert queue.exchange(b"pong", 4) == b"pong"
        frontend.request(FrontendRequest.SET_CONFIG, Config(0, 1, 0, b"y"))
        device.work = lambda device, request: str(device.shm[0].map_many([MapRequest(file, 0, PAGE)])).encode()
        assert queue.exchange(b"map", 16) == b"[None]"
    errors = [record for record in caplog.records if record.levelno == logging.ERROR]
    assert len(errors) == 1
    assert f"a bug in {where}" in errors[0].getMessage()
    assert "Traceback" in errors[0].getMessage()


@pytest.mark.parametrize("kind", [SystemExit, KeyboardInterrupt])
def test_p19_what_ends_the_program_passes_in_the_main_thread(kind: type[BaseException]) -> None:
    """A signal handler's exception comes up in the device's code, if that is what the main thread does."""
    device = Faulty()
    device.faults, device.kind = frozenset({"write_config"}), kind
    backend = Backend(device)
    ours, theirs = socket.socketpair()
    with RawFrontend(ours) as raw:
        raw.send(FIRST + message(FrontendRequest.SET_CONFIG, Config(0, 1, 0, b"x")))
        with pytest.raises(kind, match="a bug in write_config"):
            backend.serve_fd(theirs.detach())
        raw.receive()
        raw.closes()
    assert device.resets == 1


def test_p19_a_thousand_faults_are_a_few_lines(caplog: pytest.LogCaptureFixture) -> None:
    device = Faulty()
    device.faults = frozenset({"process"})
    with joined(device) as both:
        both.frontend.share_memory(1 << 20)
        queue = both.frontend.start_queue(0, size=16)
        for _ in range(1000):
            assert queue.exchange(b"ping", 4) == b""
    assert 1 <= sum("a bug in process" in record.getMessage() for record in caplog.records) <= 20


WRONG = [("0", PAGE, 0), (0, None, 0), (0.5, PAGE, 0), (0, 4096.0, 0), (0, PAGE, b"")]


@pytest.mark.parametrize("numbers", WRONG, ids=str)
def test_p19_what_is_no_number_is_a_type_error_and_leaves_all_as_it_was(numbers: tuple[int, int, int]) -> None:
    device = Scripted()
    start, size, fd_offset = numbers
    with joined(device) as both, sparse_file(PAGE) as file:
        both.frontend.share_memory(1 << 20)
        queue = both.frontend.start_queue(0, size=16)

        def wrong(device: Scripted, request: bytes) -> bytes:
            region, told = device.shm[0], b""
            fine = MapRequest(file, shm_offset=PAGE, len=PAGE)
            region.map_many([fine])
            acts: list[Callable[[], object]] = [
                lambda: region.map(file, shm_offset=start, len=size, fd_offset=fd_offset),
                lambda: region.map_many([fine._replace(shm_offset=0), MapRequest(file, start, size, fd_offset)]),
            ]
            if isinstance(fd_offset, int):
                acts += [
                    lambda: region.unmap(shm_offset=start, len=size),
                    lambda: region.unmap_many([(PAGE, PAGE), (start, size)]),
                ]
            for act in acts:
                try:
                    act()
                except TypeError:
                    told += b"."
            assert len(told) == len(acts)
            return str([mapping[:2] for mapping in region.mappings]).encode()

        device.work = wrong
        assert queue.exchange(b"go", 64) == b"[(4096, 4096)]"
        assert both.frontend.shm[0].mappings == device.shm[0].mappings
