"""A console of one port between a guest and two fds: the device behind `vhu-console` ("Console Device")."""

from __future__ import annotations

import contextlib
import logging
import os
import select
import threading
from types import TracebackType
from typing import Final, Self

from ..device import Device
from ..limited_log import LimitedLog
from ..virtio.chain import DescriptorChain
from ..virtio.console import RECEIVE, TRANSMIT, ConsoleConfig, ConsoleFeature
from ..virtio.numbers import DeviceId
from .fd_watch import INPUT, OUTPUT, FdWatch
from .vectors import MOST_BUFFERS

log = logging.getLogger(__name__)
QUEUE_SIZE: Final = 256
MOST_KEPT: Final = 1 << 20
"""The most bytes of one request that reach the output: what it does not take at once waits in the device."""
REJOIN_PAUSE: Final = 0.1
"""Seconds between looks at whether somebody has opened a pseudo terminal: nothing else tells of it."""


class ConsoleDevice(Device):
    """Gives the driver what comes from `input`, and writes to `output` what the driver sends.

    The fds stay the caller's; they do not block as long as the device has them, until `close`. The end of the input ends
    reading, not the device. With `rejoins` a hang-up is no end: the other end of a pseudo terminal may be opened again.
    """

    virtio_id = DeviceId.CONSOLE
    queue_sizes = (QUEUE_SIZE, QUEUE_SIZE)

    def __init__(self, input: int, output: int, *, rejoins: bool = False) -> None:
        self._input, self._output, self._rejoins = input, output, rejoins
        self.features, self.config = _size_of(output)
        self._ended = False
        self._lock = threading.Lock()
        self._held = memoryview(b"")
        """What the output has not taken yet."""
        self._gone = False
        self._log = LimitedLog(log)
        self._blocking = {fd: os.get_blocking(fd) for fd in (input, output)}
        self._watch = FdWatch("vhost-user console", self._ready)
        for fd in self._blocking:
            os.set_blocking(fd, False)

    def takes(self, queue: int) -> bool:
        """Whether there is input, or room for output; if not, the queue is looked at again when there is."""
        return not self._held if queue == TRANSMIT else self._has_input()

    def process(self, queue: int, chain: DescriptorChain) -> None:
        """Fill a buffer with what there is of input, or write one to the output."""
        if queue == TRANSMIT:
            self._transmit(chain)
        else:
            self._receive(chain)

    def restore(self) -> None:
        """Let the fds block again, if they did."""
        for fd, blocking in self._blocking.items():
            with contextlib.suppress(OSError):
                os.set_blocking(fd, blocking)

    def close(self) -> None:
        """End the thread, give up what the output does not take, and let the fds be as they were."""
        self._watch.close()
        with self._lock:
            if self._held:
                log.warning("the output did not take the last %d bytes", len(self._held))
            self._held = memoryview(b"")
        self.restore()

    def _has_input(self) -> bool:
        if self._ended:
            return False
        found = _look(self._input)
        if found & INPUT:
            return True
        if found and not self._rejoins:
            self._ended = True
        else:
            self._watch.ask(self._input, INPUT, pause=REJOIN_PAUSE if found else 0.0)
        return False

    def _receive(self, chain: DescriptorChain) -> None:
        """Read straight into the buffers. They stay empty at the end of the input, or if somebody else has read it."""
        views = [view for view in chain.writable[:MOST_BUFFERS] if view.nbytes]
        if not views:
            return
        try:
            chain.written = os.readv(self._input, views)
            self._ended = not chain.written and not self._rejoins
        except BlockingIOError:
            return
        except OSError as error:
            self._ended = not self._rejoins
            self._log.warning(f"the input can't be read: {error.strerror}")

    def _transmit(self, chain: DescriptorChain) -> None:
        data = chain.read(MOST_KEPT)
        if more := chain.readable_size - len(data):
            self._log.warning(f"{more} bytes of a request that is longer than {MOST_KEPT} were dropped")
        with self._lock:
            self._held = memoryview(data)
            self._flush()

    def _flush(self) -> None:
        """Write what the output takes, and wait for it to take more. The lock must be held."""
        if self._held and self._rejoins and _look(self._output) & select.POLLHUP:
            self._drop("nobody has the terminal open")
        while self._held:
            try:
                self._held = self._held[os.write(self._output, self._held) :]
                self._gone = False
            except BlockingIOError:
                self._watch.ask(self._output, OUTPUT)
                return
            except OSError as error:
                self._drop(error.strerror or str(error))

    def _drop(self, why: str) -> None:
        """Nobody takes the output, which is no reason for the guest to wait; said once until somebody does again."""
        if not self._gone:
            self._log.warning(f"output is dropped: {why}")
        self._gone, self._held = True, memoryview(b"")

    def _ready(self, fd: int, events: int) -> None:
        """In the watch's thread: there is input, or room for output."""
        if events == INPUT:
            self.resume(RECEIVE)
            return
        with self._lock:
            self._flush()
        if not self._held:
            self.resume(TRANSMIT)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, value: BaseException | None, trace: TracebackType | None) -> None:
        self.close()


def _look(fd: int) -> int:
    """What poll says of an fd now."""
    poll = select.poll()
    poll.register(fd, INPUT)
    return sum(events for _, events in poll.poll(0))


def _size_of(fd: int) -> tuple[int, bytes]:
    """The features and the configuration space: with the size of the terminal `fd`, if it is one that has a size."""
    try:
        columns, lines = os.get_terminal_size(fd)
    except OSError:
        columns = lines = 0
    features = 1 << ConsoleFeature.SIZE if columns and lines else 0
    return features, ConsoleConfig(cols=columns, rows=lines).pack()
