"""A console between a guest and two fds ("Console Device")."""

from __future__ import annotations

import os
import pty
import socket
import struct
import termios
import threading
import tty
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from fcntl import ioctl

import pytest

from tests.process.test_undrained import Rig
from vhostuser.devices.console import MOST_KEPT, ConsoleDevice
from vhostuser.drivers.console import ConsoleDriver
from vhostuser.protocol.numbers import FrontendRequest
from vhostuser.protocol.payloads import VringState
from vhostuser.testing import DEADLINE, Joined, joined, leaving_nothing, raw_frontend, wait_until
from vhostuser.virtio.chain import DescriptorChain
from vhostuser.virtio.console import RECEIVE, TRANSMIT, ConsoleConfig, ConsoleFeature

Q = FrontendRequest
NOT_ALL = b"the output takes no more of this than a pipe holds " * 10_000


@pytest.fixture(params=[False, True], ids=["split", "packed"])
def packed(request: pytest.FixtureRequest) -> bool:
    return bool(request.param)


@contextmanager
def pipes(*, rejoins: bool = False) -> Iterator[tuple[ConsoleDevice, socket.socket, socket.socket]]:
    """A device between two sockets, and the other ends: to type, and to read what it shows."""
    with ExitStack() as opened:
        (typing, input), (output, shown) = (tuple(map(opened.enter_context, socket.socketpair())) for _ in range(2))
        shown.settimeout(DEADLINE)
        yield opened.enter_context(ConsoleDevice(input.fileno(), output.fileno(), rejoins=rejoins)), typing, shown


@contextmanager
def driven(device: ConsoleDevice, *, packed: bool = False, size: int = 16) -> Iterator[tuple[ConsoleDriver, Joined]]:
    with joined(device, packed=packed, features=1 << ConsoleFeature.SIZE) as both:
        both.frontend.share_memory(4 << 20)
        yield ConsoleDriver(both.frontend, size=size, timeout=DEADLINE), both


def all_of(sock: socket.socket, size: int) -> bytes:
    data = b""
    while len(data) < size and (more := sock.recv(size - len(data))):
        data += more
    return data


def read_all(driver: ConsoleDriver, size: int) -> bytes:
    data = b""
    while len(data) < size and (more := driver.read(DEADLINE)):
        data += more
    return data


def test_bytes_go_both_ways_as_they_are(packed: bool) -> None:
    every = bytes(range(256)) * 100
    with pipes() as (device, typing, shown), driven(device, packed=packed) as (driver, _):
        assert driver.terminal_size is None
        for _ in range(3):
            typing.sendall(every)
            assert read_all(driver, len(every)) == every
            driver.write(every)
            assert all_of(shown, len(every)) == every


def test_input_waits_outside_until_the_driver_has_buffers(packed: bool) -> None:
    """What was typed before the driver came, and more than its buffers hold."""
    typed = os.urandom(1 << 16)
    with pipes() as (device, typing, _):
        typing.sendall(typed[:100])
        with joined(device, packed=packed) as both:
            both.frontend.share_memory(1 << 20)
            queue = both.frontend.start_queue(RECEIVE, size=16)
            assert queue.exchange(b"", reply_size=64, timeout=DEADLINE) == typed[:64]
            typing.sendall(typed[100:])
            got = b""
            while len(got) < len(typed) - 64:
                got += queue.exchange(b"", reply_size=5000, timeout=DEADLINE)
            assert got == typed[64:]


def test_a_key_comes_when_it_is_typed() -> None:
    with pipes() as (device, typing, _), driven(device) as (driver, _):
        for key in (b"a", b"b", b"\x1b[A"):
            answers: list[bytes] = []
            reader = threading.Thread(target=lambda answers=answers: answers.append(driver.read(DEADLINE)))
            reader.start()
            typing.sendall(key)
            reader.join(DEADLINE)
            assert answers == [key]


def test_a_buffer_in_pieces_is_filled_in_order() -> None:
    with pipes() as (device, typing, shown), joined(device) as both:
        both.frontend.share_memory(1 << 20)
        receiving = both.frontend.start_queue(RECEIVE, size=16)
        typing.sendall(b"0123456789")
        done = receiving.finish(receiving.submit([], [3, 4, 5]), timeout=DEADLINE)
        assert (done.buffers, done.written) == ((b"012", b"3456", b"789\0\0"), 10)
        sending = both.frontend.start_queue(TRANSMIT, size=16)
        sending.finish(sending.submit([b"abc", b"", b"defg"], []), timeout=DEADLINE)
        assert all_of(shown, 7) == b"abcdefg"


def test_a_buffer_that_takes_nothing_does_not_end_the_input() -> None:
    with pipes() as (device, typing, _), joined(device) as both:
        both.frontend.share_memory(1 << 20)
        queue = both.frontend.start_queue(RECEIVE, size=16)
        typing.sendall(b"here")
        assert queue.exchange(b"read me", timeout=DEADLINE) == b""
        assert queue.exchange(b"", 10, timeout=DEADLINE) == b"here"


# Output that does not take everything at once


def test_what_the_output_does_not_take_waits_in_the_device_and_nothing_more(packed: bool) -> None:
    with pipes() as (device, _, shown), driven(device, packed=packed) as (driver, both):
        queue = driver.sending
        tickets = [queue.submit([piece], []) for piece in (NOT_ALL, b"second", b"third")]
        queue.notify()
        queue.finish(tickets[0], timeout=DEADLINE)
        assert not device.takes(TRANSMIT)
        assert queue.in_flight == 2
        assert all_of(shown, len(NOT_ALL)) == NOT_ALL
        for ticket in tickets[1:]:
            queue.finish(ticket, timeout=DEADLINE)
        assert all_of(shown, 11) == b"secondthird"
        assert not both.served.backend.counters.broken


def test_one_request_shows_a_mebibyte_and_no_more(caplog: pytest.LogCaptureFixture) -> None:
    with pipes() as (device, _, shown), joined(device) as both:
        both.frontend.share_memory(4 << 20)
        queue = both.frontend.start_queue(TRANSMIT, size=16)
        queue.exchange(b"x" * MOST_KEPT + b"lost", timeout=DEADLINE)
        assert all_of(shown, MOST_KEPT) == b"x" * MOST_KEPT
        queue.exchange(b"more", timeout=DEADLINE)
        assert all_of(shown, 4) == b"more"
    assert "4 bytes of a request that is longer than 1048576 were dropped" in caplog.text


def test_output_that_blocks_does_not_hold_up_the_input() -> None:
    with pipes() as (device, typing, _), driven(device) as (driver, _):
        driver.write(NOT_ALL[: 1 << 16])
        while device.takes(TRANSMIT):
            driver.write(NOT_ALL[: 1 << 16])
        typing.sendall(b"still here")
        assert read_all(driver, 10) == b"still here"


def test_output_that_nobody_reads_is_dropped_and_that_said_once(caplog: pytest.LogCaptureFixture) -> None:
    with pipes() as (device, typing, shown), driven(device) as (driver, _):
        shown.close()
        for _ in range(20):
            driver.write(b"to nobody")
        typing.sendall(b"alive")
        assert read_all(driver, 5) == b"alive"
    assert caplog.text.count("output is dropped: Broken pipe") == 1


def test_what_is_left_at_the_end_is_said(caplog: pytest.LogCaptureFixture) -> None:
    with pipes() as (device, _, _), driven(device) as (driver, _):
        driver.sending.exchange(NOT_ALL, timeout=DEADLINE)
    assert "the output did not take the last" in caplog.text


# Ends


def test_the_end_of_the_input_ends_reading_and_nothing_else(packed: bool) -> None:
    with pipes() as (device, typing, shown), driven(device, packed=packed) as (driver, _):
        typing.sendall(b"last words")
        typing.close()
        assert read_all(driver, 10) == b"last words"
        wait_until(lambda: not device.takes(RECEIVE), "no more is taken")
        for _ in range(40):
            driver.write(b"ping")
        assert all_of(shown, 160) == b"ping" * 40
        assert driver.read(0) == b""


@pytest.mark.parametrize("kind", ["pipe", "/dev/null", "pty"])
def test_each_kind_of_input_has_its_end(kind: str) -> None:
    """A pipe's is a hang-up, a file's a read of nothing, a terminal's an error."""
    with ExitStack() as opened:
        if kind == "pipe":
            input, other = os.pipe()
        elif kind == "pty":
            input, other = pty.openpty()
        else:
            input, other = os.open(kind, os.O_RDONLY), os.open(kind, os.O_RDONLY)
        opened.callback(os.close, input)
        os.close(other)
        sink = os.open("/dev/null", os.O_WRONLY)
        opened.callback(os.close, sink)
        with ConsoleDevice(input, sink) as device, driven(device) as (driver, _):
            wait_until(lambda: not device.takes(RECEIVE), "the input has ended")
            wait_until(lambda: not device._watch._wishes, "nobody looks at it any more")
            assert not device.takes(RECEIVE)
            assert not device._watch._wishes
            driver.write(b"goes on")
            assert driver.read(0) == b""


@pytest.mark.parametrize("stop", ["stop", "reset", "disable"])
def test_a_stop_does_not_wait_for_input(stop: str) -> None:
    """Buffers wait in the ring, not in the device: nothing is in progress."""
    with pipes() as (device, typing, _), raw_frontend(device) as raw:
        device.drain_timeout = 10 * DEADLINE
        rig = Rig(raw, device)  # type: ignore[arg-type]
        for turn in range(2):
            rig.ask(b"any ", b"any ")
            if stop == "disable":
                raw.accepted(Q.SET_VRING_ENABLE, VringState(0, 0))
            if stop == "reset":
                raw.accepted(Q.RESET_DEVICE)
            else:
                assert VringState.unpack(raw.reply(Q.GET_VRING_BASE, VringState(0, 0)).payload).num == 0
            rig.set_up()
            rig.ask(b"any ")
            typing.sendall(b"%d!" % turn)
            wait_until(lambda: rig.answers() == 1, "the ring that was set up anew gets input")
            assert bytes(rig.memory[0x20000:0x20002]) == b"%d!" % turn
            assert VringState.unpack(raw.reply(Q.GET_VRING_BASE, VringState(0, 0)).payload).num == 1
            rig.set_up()
        rig.close()


def test_the_next_front_end_gets_what_is_typed_from_then_on() -> None:
    with pipes() as (device, typing, shown):
        for turn in (b"first", b"second"):
            with driven(device) as (driver, _):
                typing.sendall(turn)
                assert read_all(driver, len(turn)) == turn
                driver.write(turn)
                assert all_of(shown, len(turn)) == turn


@pytest.mark.parametrize("used", [False, True])
def test_in_the_end_the_fds_are_as_they_were_and_nothing_is_left(used: bool) -> None:
    with leaving_nothing():
        (typing, input), (output, shown) = socket.socketpair(), socket.socketpair()
        with typing, input, output, shown:
            output.setblocking(False)
            with ConsoleDevice(input.fileno(), output.fileno()) as device:
                if used:
                    with driven(device) as (driver, _):
                        driver.sending.exchange(NOT_ALL, timeout=DEADLINE)
                        assert any("console" in thread.name for thread in threading.enumerate())
                assert not os.get_blocking(input.fileno())
            assert os.get_blocking(input.fileno())
            assert not os.get_blocking(output.fileno())
            assert not any("console" in thread.name for thread in threading.enumerate())


# Terminals


@contextmanager
def terminal() -> Iterator[tuple[int, str]]:
    """A pseudo terminal whose other end was closed again: its fd and the path of the other end."""
    ours, theirs = pty.openpty()
    try:
        tty.setraw(theirs)
        path = os.ttyname(theirs)
        os.close(theirs)
        yield ours, path
    finally:
        os.close(ours)


def quietly(path: str, flags: int) -> int:
    """Open a terminal without making it this process's own."""
    return os.open(path, flags | os.O_NOCTTY)


def test_a_pseudo_terminal_may_be_opened_and_closed_and_opened_again(caplog: pytest.LogCaptureFixture) -> None:
    with terminal() as (fd, path), ConsoleDevice(fd, fd, rejoins=True) as device, driven(device) as (driver, _):
        driver.write(b"nobody sees this")
        for turn in (b"first", b"second"):
            with open(path, "r+b", buffering=0, opener=quietly) as user:
                user.write(turn)
                assert read_all(driver, len(turn)) == turn
                driver.write(turn)
                assert user.read(100) == turn
            wait_until(lambda: not device.takes(RECEIVE), "the hang-up is seen")
    assert caplog.text.count("output is dropped: nobody has the terminal open") == 1


def test_a_guest_does_not_wait_for_a_user_who_left_without_reading() -> None:
    with terminal() as (fd, path), ConsoleDevice(fd, fd, rejoins=True) as device, driven(device) as (driver, _):
        with open(path, "r+b", buffering=0, opener=quietly):
            while device.takes(TRANSMIT):
                driver.write(NOT_ALL[:1000])
            ticket = driver.sending.submit([b"after"], [])
            driver.sending.notify()
        driver.sending.finish(ticket, timeout=DEADLINE)
        driver.write(NOT_ALL)


def test_the_size_of_a_terminal_is_in_the_configuration_space() -> None:
    with terminal() as (_, path), open(path, "r+b", buffering=0, opener=quietly) as user:
        ioctl(user, termios.TIOCSWINSZ, struct.pack("HHHH", 25, 132, 0, 0))
        with ConsoleDevice(user.fileno(), user.fileno()) as device, driven(device) as (driver, both):
            assert driver.terminal_size == (132, 25)
            assert ConsoleConfig.unpack(both.frontend.config(0, 12)) == ConsoleConfig(cols=132, rows=25)


def test_a_device_whose_output_has_no_size_offers_none() -> None:
    with pipes() as (device, _, _):
        assert (device.features, device.config) == (0, bytes(12))


def test_a_read_that_somebody_else_was_faster_with_gives_nothing() -> None:
    with pipes() as (device, typing, _):
        device.process(RECEIVE, chain := DescriptorChain(0, (), (memoryview(bytearray(8)),)))
        assert chain.written == 0
        typing.sendall(b"x")
        assert device.takes(RECEIVE)
