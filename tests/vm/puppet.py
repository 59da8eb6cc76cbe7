"""A back-end in a process of its own whose device does what a test tells it.

An order is a JSON object: `do` names one of the `do_` methods of `Puppet`, the rest are its arguments. Orders come over the
control socket, one a line, at any time; or as requests of the driver; or with the plan, to be obeyed when a moment comes
(`driver_ready`, `reset`). The answer says what was returned, or which exception was raised.
"""

from __future__ import annotations

import errno
import fcntl
import json
import logging
import os
import signal
import socket
import sys
import threading
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Final
from unittest import mock

from vhostuser import Backend, Device, LocalProtocolError, MapRequest, VhostUserError
from vhostuser.protocol.dialects import dialect_named
from vhostuser.protocol.layout import Payload
from vhostuser.protocol.numbers import PAGE, BackendRequest, ProtocolFeature
from vhostuser.protocol.payloads import Mmap
from vhostuser.ring_requests import WithFd
from vhostuser.serving import Serving
from vhostuser.transport.channel import OwnedMessage
from vhostuser.virtio.chain import DescriptorChain

Order = dict[str, object]
CONFIG: Final = bytes(range(64))
READY: Final = "driver_ready"


@dataclass(slots=True)
class Plan:
    """What the puppet is like."""

    regions: dict[str, int]
    queues: list[int] = field(default_factory=lambda: [128])
    moments: dict[str, list[Order]] = field(default_factory=dict)
    dialect: str = "released"


class Puppet(Device):
    """A device that obeys."""

    virtio_id = 26
    config = CONFIG

    def __init__(self, plan: Plan) -> None:
        self.shared_memory = {int(shmid): size for shmid, size in plan.regions.items()}
        self.queue_sizes = tuple(plan.queues)
        self.backend = Backend(self, dialect=dialect_named(plan.dialect))
        self.told: list[tuple[str, list[Order]]] = []
        self.heard: list[tuple[str, bool]] = []
        self._changed = threading.Condition()
        self._moments = plan.moments

    def process(self, queue: int, chain: DescriptorChain) -> None:
        chain.write(json.dumps(self.obey(json.loads(chain.read()))).encode())

    def driver_ready(self) -> None:
        self._moment(READY)

    def reset(self) -> None:
        self._moment("reset")

    def _moment(self, name: str) -> None:
        came = [self.obey(order) for order in self._moments.get(name, [])]
        with self._changed:
            self.told.append((name, came))
            self._changed.notify_all()

    def obey(self, order: Order) -> Order:
        """Obey one order; what came of it."""
        arguments = dict(order)
        action = getattr(self, f"do_{arguments.pop('do')}")
        try:
            return {"result": action(**arguments)}
        except (VhostUserError, OSError) as error:
            return {"error": type(error).__name__, "text": str(error)}

    def do_echo(self, *, text: str) -> str:
        """Give it back."""
        return text

    def do_map(
        self, *, path: str, shm_offset: int, len: int, shmid: int = 0, fd_offset: int = 0, writable: bool = False
    ) -> None:
        """Map a file, opened for writing as well since QEMU 11.1 wants that."""
        with open(path, "r+b") as file:
            self.shm[shmid].map(file, shm_offset=shm_offset, len=len, fd_offset=fd_offset, writable=writable)

    def do_map_fd(self, *, path: str, flags: int, shm_offset: int, len: int, writable: bool = False) -> None:
        """Map a file that is opened with these flags."""
        fd = os.open(path, flags)
        try:
            self.shm[0].map(fd, shm_offset=shm_offset, len=len, writable=writable)
        finally:
            os.close(fd)

    def do_map_as_soon_as_possible(self, *, path: str, len: int, seconds: float = 10.0) -> None:
        """Try to map until it is allowed."""
        deadline = time.monotonic() + seconds
        while True:
            try:
                return self.do_map(path=path, shm_offset=0, len=len)
            except LocalProtocolError:
                if time.monotonic() > deadline:
                    raise

    def do_map_sealed(self, *, content: str, shm_offset: int) -> str:
        """Map a memfd of a page that can't shrink; the error of whoever tries to shrink it."""
        fd = os.memfd_create("sealed", os.MFD_CLOEXEC | os.MFD_ALLOW_SEALING)
        with open(fd, "r+b") as file:
            file.write(content.encode())
            file.truncate(PAGE)
            fcntl.fcntl(file, fcntl.F_ADD_SEALS, fcntl.F_SEAL_SHRINK | fcntl.F_SEAL_SEAL)
            self.shm[0].map(file, shm_offset=shm_offset, len=PAGE)
            try:
                file.truncate(0)
            except OSError as error:
                return errno.errorcode[error.errno or 0]
        return "shrunk"

    def do_map_many(self, *, path: str, count: int, len: int) -> list[str]:
        """Map the first `count` pieces of a file, side by side, in one go; what went wrong with each."""
        with open(path, "r+b") as file:
            requests = [MapRequest(file, number * len, len, number * len) for number in range(count)]
            return [str(failure or "") for failure in self.shm[0].map_many(requests)]

    def do_unmap(self, *, shm_offset: int, len: int, shmid: int = 0) -> None:
        """Unmap a range."""
        self.shm[shmid].unmap(shm_offset=shm_offset, len=len)

    def do_mappings(self, *, shmid: int = 0) -> list[tuple[int, int, int, bool]]:
        """What the back-end believes to be mapped."""
        return [(*mapping,) for mapping in self.shm[shmid].mappings]

    def do_send(self, *, request: str, shm_offset: int, len: int, path: str | None = None) -> int:
        """Send a request without the checks of SharedMemory; the status in its answer."""
        body = Mmap(0, 0, shm_offset, len, 0)
        if path is None:
            return self._send(BackendRequest[request], body, ())
        with open(path, "r+b") as file:
            return self._send(BackendRequest[request], body, (file.fileno(),))

    def _send(self, request: BackendRequest, body: Mmap, fds: Sequence[int]) -> int:
        port = self.backend._port
        with port.lock:
            return port.send_all([(request, body, fds)])[0]

    def do_heard(self) -> list[tuple[str, bool]]:
        """The requests of the front-end so far, by name (with an exclamation mark where it set need_reply), and whether
        mapping was possible after each.
        """
        return list(self.heard)

    def do_told(self) -> list[tuple[str, list[Order]]]:
        """The moments so far, and what came of the orders for them."""
        return list(self.told)

    def do_wait_told(self, *, moment: str, times: int, seconds: float) -> None:
        """Wait until a moment has come that often."""

        def come() -> bool:
            return [name for name, _ in self.told].count(moment) >= times

        with self._changed:
            if not self._changed.wait_for(come, seconds):
                raise TimeoutError(f"{moment} has not come {times} times, but there were {self.told}")

    def do_negotiated(self) -> list[str]:
        """The protocol features that both sides have."""
        session = self.backend._port._session
        return [] if session is None else [feature.name for feature in ProtocolFeature if session.state.has(feature)]

    def do_counters(self) -> dict[str, int]:
        """The back-end's counters."""
        names = ("messages", "acks", "refused", "closed", "broken", "maps", "unmaps")
        return {name: int(getattr(self.backend.counters, name)) for name in names}


def main(listener: int, control: int, plan: Plan) -> None:
    """Serve until SIGTERM, or until whoever gives the orders hangs up."""
    logging.basicConfig(level=logging.INFO, format="%(levelname)s %(message)s")
    puppet = Puppet(plan)
    signal.signal(signal.SIGTERM, lambda *_: puppet.backend.stop())
    orders = threading.Thread(target=_take_orders, args=(puppet, control), daemon=True)
    orders.start()
    with mock.patch.object(Serving, "_perform", _listening(puppet)):
        puppet.backend.serve_fd(listener)


def _listening(puppet: Puppet) -> object:
    """`Serving._perform`, which also tells the puppet what it performed, before the front-end gets its answer."""
    original = Serving._perform

    def perform(serving: Serving, message: OwnedMessage) -> Payload | WithFd | None:
        answer = original(serving, message)
        name = message.rule.name + ("!" if message.need_reply else "")
        puppet.heard.append((name, puppet.backend._port.running))
        return answer

    return perform


def _take_orders(puppet: Puppet, control: int) -> None:
    with socket.socket(fileno=control) as sock, sock.makefile("rw") as lines:
        for line in lines:
            lines.write(json.dumps(puppet.obey(json.loads(line))) + "\n")
            lines.flush()
    puppet.backend.stop()


if __name__ == "__main__":
    main(int(sys.argv[1]), int(sys.argv[2]), Plan(**json.loads(sys.argv[3])))
