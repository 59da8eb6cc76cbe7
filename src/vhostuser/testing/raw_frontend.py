"""A front-end that may be hostile: the few steps that a test needs, and raw messages for the rest."""

from __future__ import annotations

import os
import socket

from ..protocol.numbers import FrontendRequest, ProtocolFeature, VhostFeature, mask
from ..protocol.payloads import U64, MemoryRegion, MemoryTable, VringAddr, VringState
from ..transport.fds import HasFileno, OwnedFd
from ..virtio.formats import SPLIT, Format
from ..virtio.numbers import Feature
from .files import sparse_file
from .wire import DEADLINE, Wire

F, Q = ProtocolFeature, FrontendRequest
FEATURES = mask((Feature.VERSION_1, VhostFeature.PROTOCOL_FEATURES))
PROTOCOL_FEATURES = mask((F.MQ, F.REPLY_ACK, F.BACKEND_REQ, F.CONFIG, F.BACKEND_SEND_FD, F.RESET_DEVICE, F.STATUS, F.SHMEM))
MEMORY = 1 << 20


class RawFrontend(Wire):
    """The front-end's end of a main channel, with steps to bring the back-end into the state that a test is about."""

    def __init__(self, sock: socket.socket, *, deadline: float = DEADLINE) -> None:
        super().__init__(sock, deadline=deadline)
        self.requests: Wire | None = None
        """The back-end channel, once `open_requests` made it."""
        self.kick: OwnedFd | None = None
        self.err: OwnedFd | None = None
        self._owned: list[OwnedFd] = []

    def value(self, request: FrontendRequest) -> int:
        """Ask for a single number."""
        return U64.unpack(self.reply(request).payload).value

    def alive(self) -> None:
        """The back-end has nothing more to say than the answer to GET_FEATURES: the connection lives, in step."""
        self.value(Q.GET_FEATURES)

    def silent(self, request: int, body: bytes = b"", *, flags: int = 1, fds: list[int | HasFileno] | None = None) -> None:
        """Send a request that gets no answer of any kind; the connection lives."""
        self.request(request, body, flags=flags, fds=fds or ())
        self.alive()

    def negotiate(self, *, features: int = FEATURES, protocol: int = PROTOCOL_FEATURES) -> None:
        """Agree on what both sides have of `features` and `protocol`, and own the device."""
        offered = self.value(Q.GET_FEATURES)
        if offered >> VhostFeature.PROTOCOL_FEATURES & 1:
            self.request(Q.SET_PROTOCOL_FEATURES, U64(self.value(Q.GET_PROTOCOL_FEATURES) & protocol))
        self.request(Q.SET_OWNER)
        self.request(Q.SET_FEATURES, U64(offered & features))
        self.alive()

    def open_requests(self) -> Wire:
        """Give the back-end its channel; our end of it."""
        ours, theirs = socket.socketpair()
        with theirs:
            self.accepted(Q.SET_BACKEND_REQ_FD, fds=[theirs])
        if self.requests:
            self.requests.close()
        self.requests = Wire(ours, deadline=self.deadline)
        return self.requests

    def share_memory(self, size: int = MEMORY) -> OwnedFd:
        """Share a sealed memfd at guest and user address 0; the memfd, which stays this object's."""
        memory = self._keep(sparse_file(size, seal=True))
        self.accepted(Q.SET_MEM_TABLE, MemoryTable([MemoryRegion(0, size, 0, 0)]), fds=[memory])
        return memory

    def set_up_queue(
        self,
        index: int = 0,
        *,
        size: int = 16,
        base: int | None = None,
        at: int = 0,
        ring: Format = SPLIT,
        enabled: bool = True,
    ) -> None:
        """Lay a ring at user address `at`, start it, and enable it unless not; `kick` and `err` are its eventfds then."""
        descriptors, available, _ = ring.sizes(size)
        addresses = VringAddr(index, 0, at, at + descriptors + -(-available // 4) * 4, at + descriptors, 0)
        self.accepted(Q.SET_VRING_NUM, VringState(index, size))
        self.accepted(Q.SET_VRING_BASE, VringState(index, ring.first_base if base is None else base))
        self.accepted(Q.SET_VRING_ADDR, addresses)
        self.kick, self.err = self.eventfd(), self.eventfd()
        self.accepted(Q.SET_VRING_ERR, U64(index), fds=[self.err])
        self.accepted(Q.SET_VRING_KICK, U64(index), fds=[self.kick])
        if enabled:
            self.enable(index)

    def enable(self, index: int) -> None:
        """Let the back-end take requests from a ring."""
        self.accepted(Q.SET_VRING_ENABLE, VringState(index, 1))

    def start(self, *, protocol: int = PROTOCOL_FEATURES) -> Wire:
        """All of it: negotiate, back-end channel, memory and queue 0; the back-end channel."""
        self.negotiate(protocol=protocol)
        requests = self.open_requests()
        self.share_memory()
        self.set_up_queue()
        return requests

    def eventfd(self) -> OwnedFd:
        """An eventfd that is closed with this object."""
        return self._keep(OwnedFd(os.eventfd(0, os.EFD_CLOEXEC | os.EFD_NONBLOCK)))

    def _keep(self, fd: OwnedFd) -> OwnedFd:
        self._owned.append(fd)
        return fd

    def close(self) -> None:
        """Close both channels and all that was made here."""
        super().close()
        if self.requests:
            self.requests.close()
        for fd in self._owned:
            fd.close()
