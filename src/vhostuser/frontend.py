"""Drive a back-end, and answer its requests while waiting for its replies."""

from __future__ import annotations

import contextlib
import logging
import os
import socket
import threading
import time
from collections.abc import Mapping, Sequence
from types import MappingProxyType, TracebackType
from typing import Final, Self, TypedDict, Unpack

from .answering import Answering
from .counters import Counters
from .driving import Driving
from .errors import Disconnected, LocalProtocolError, RemoteProtocolError, RequestFailed
from .limited_log import LimitedLog
from .memory.added import AddedBlock, AddedMemory
from .memory.arena import Arena
from .memory.table import new_quota
from .memory.window import PROCESS, Window
from .protocol.dialects import RELEASED, Dialect, diagnose_back_end
from .protocol.layout import Payload
from .protocol.numbers import (
    FrontendRequest,
    ProtocolFeature,
    VhostFeature,
    mask,
    missing_requirements,
    protocol_feature_names,
)
from .protocol.payloads import U64, Config, MemoryTable, Mmap, ShmemConfig, VringState
from .protocol.regions import DEVICE_QUOTA
from .protocol.session import Session
from .protocol.state import Ring, Role, State
from .queue import Queue
from .shared_region import SharedRegion
from .transport.channel import PARTIAL_TIMEOUT, REPLY_TIMEOUT, Channel, OwnedMessage
from .transport.fds import HasFileno
from .transport.listen import accept, connect, listen
from .virtio.numbers import Feature, feature_names

log = logging.getLogger(__name__)
F, Q = ProtocolFeature, FrontendRequest

FEATURES: Final = mask((Feature.VERSION_1, Feature.RING_INDIRECT_DESC, VhostFeature.PROTOCOL_FEATURES))
DEVICE_FEATURES: Final = mask((*range(24), *range(50, 64)))
"""The bits that belong to device types ("Feature Bits")."""
PROTOCOL_FEATURES: Final = mask(
    (
        *(F.MQ, F.REPLY_ACK, F.BACKEND_REQ, F.CONFIG, F.BACKEND_SEND_FD, F.RESET_DEVICE, F.STATUS, F.SHMEM),
        F.CONFIGURE_MEM_SLOTS,
    )
)
"""What this front-end makes use of. GPA_ADDRESSES is not among it: its user addresses are guest addresses anyway, and a
back-end of rust-vmm's vhost 0.16 would take the bit for SHMEM."""


class FrontendOptions(TypedDict, total=False):
    """What may be chosen for a front-end, by keyword."""

    dialect: Dialect
    max_maps: int
    partial_timeout: float
    reply_timeout: float
    populate: bool
    packed: bool
    features: int


class Frontend:
    """A front-end connected to one back-end.

    It has no thread of its own: requests of the back-end are answered while a method waits, be it for a reply, for a queue,
    or in `serve`. Every method raises Disconnected once the back-end is gone, DeadlineExpired if it does not answer in
    `reply_timeout` seconds, and RemoteProtocolError if it breaks the protocol; the connection is over then.

    `dialect` is the numbering of the shared memory messages, `max_maps` the most live mappings, `partial_timeout` the
    seconds for the rest of a message that has begun; `populate` reads the pages of a mapping in when it is made; `packed`
    takes packed rings where the back-end offers them. `features` are bits of the device type, as a mask, that are
    acknowledged if they are offered.
    """

    def __init__(
        self,
        sock: socket.socket,
        *,
        dialect: Dialect = RELEASED,
        max_maps: int = DEVICE_QUOTA,
        partial_timeout: float = PARTIAL_TIMEOUT,
        reply_timeout: float = REPLY_TIMEOUT,
        populate: bool = False,
        packed: bool = False,
        features: int = 0,
    ) -> None:
        self.diagnosis: str | None = None
        """Why the back-end's shared memory is not to be had, if it looks like another dialect's."""
        self.shm: Mapping[int, SharedRegion] = MappingProxyType({})
        """The shared memory regions by shmid."""
        self._session = Session(Role.FRONTEND, State(rings=(Ring(),)), dialect=dialect)
        self._lock = threading.RLock()
        self._channel = Channel(sock, partial_timeout=partial_timeout, reply_timeout=reply_timeout)
        self._answering = Answering(self._session, self)
        self._driving = Driving(self._channel, self._session, self._answering)
        self._quota = new_quota("device", max_maps, PROCESS)
        self._populate = populate
        self._features = FEATURES | packed << Feature.RING_PACKED
        self._device_features = features
        self._reset_left: frozenset[int] | None = None
        self._windows: dict[int, Window] = {}
        self._memory: Arena | None = None
        self._added = AddedMemory()
        self._queues: dict[int, Queue] = {}
        self._log = LimitedLog(log)
        try:
            self._negotiate()
        except BaseException:
            self.close()
            raise

    @classmethod
    def connect(cls, path: str | os.PathLike[str], *, wait: float = 0.0, **options: Unpack[FrontendOptions]) -> Self:
        """Connect to a back-end that listens on `path`, trying for `wait` seconds; options as for the class."""
        return cls(connect(path, wait=wait), **options)

    @classmethod
    def listen(
        cls, path: str | os.PathLike[str], *, timeout: float | None = None, **options: Unpack[FrontendOptions]
    ) -> Self:
        """Listen on `path` for a back-end that connects, at most `timeout` seconds; options as for the class."""
        with listen(path) as listener:
            try:
                return cls(accept(listener, timeout), **options)
            finally:
                with contextlib.suppress(OSError):
                    os.unlink(path)

    # What was agreed

    @property
    def features(self) -> frozenset[str]:
        """Names of the virtio features in use; a bit of the device type is `BIT_n`."""
        return feature_names(self._session.state.acknowledged)

    @property
    def protocol_features(self) -> frozenset[str]:
        """Names of the protocol features in use."""
        return protocol_feature_names(self._session.state.protocol_acknowledged)

    @property
    def offered(self) -> tuple[int, int]:
        """What the back-end offered, as masks: virtio features, and protocol features in the released numbering."""
        return self._session.state.offered, self._session.state.protocol_offered

    @property
    def queue_count(self) -> int:
        """How many queues the back-end has."""
        return len(self._session.state.rings)

    def config(self, offset: int, size: int) -> bytes:
        """`size` bytes of the device's configuration space. RequestFailed if they are not there ("GET_CONFIG")."""
        body = self.request(Q.GET_CONFIG, Config(offset, size, 0, bytes(size)))
        if not isinstance(body, Config) or body.size != size:
            raise RequestFailed("GET_CONFIG", 1, f"GET_CONFIG offset {offset} size {size} was refused by the back-end")
        return body.payload

    @property
    def counters(self) -> Counters:
        """What this side has counted so far."""
        total = self._answering.counters
        total.closed += self._driving.lost is not None
        return total

    # Memory and queues

    def share_memory(self, size: int) -> None:
        """Share `size` bytes of fresh memory, whole pages, with the back-end ("SET_MEM_TABLE"). Once, before any queue."""
        if self._memory is not None:
            raise LocalProtocolError("memory is shared already", request="SET_MEM_TABLE")
        memory = Arena(size)
        try:
            self.request(Q.SET_MEM_TABLE, MemoryTable([memory.region]), [memory.fd.fileno()])
        except BaseException:
            memory.close()
            raise
        self._memory = memory

    def add_memory(self, size: int) -> AddedBlock:
        """Share `size` bytes more, whole pages, also while queues run ("ADD_MEM_REG"). Needs `share_memory`.

        RequestFailed if the back-end says no, LocalProtocolError if it has no memory slots or none is left.
        """
        if self._memory is None:
            raise LocalProtocolError("add_memory needs share_memory first", request="ADD_MEM_REG")
        block = self._added.make(size, self._memory.region.size)
        try:
            self.request(Q.ADD_MEM_REG, block.region, [block.fd.fileno()])
        except BaseException:
            block.close()
            raise
        self._added.keep(block)
        return block

    def remove_memory(self, block: AddedBlock) -> None:
        """Take memory that was added away again; no request may use it any more ("REM_MEM_REG")."""
        self.request(Q.REM_MEM_REG, block.region)
        self._added.forget(block)

    def start_queue(self, index: int, *, size: int = 256) -> Queue:
        """Set up queue `index` with `size` descriptors, start and enable it. Needs `share_memory`."""
        if self._memory is None:
            raise LocalProtocolError("start_queue needs share_memory first", request="SET_VRING_ADDR")
        self._finish_reset()
        queue = Queue(index, size, self._memory, self, self._session.state.acknowledged)
        try:
            self._start(queue)
        except BaseException:
            queue.close()
            raise
        if old := self._queues.get(index):
            old.close()
        self._queues[index] = queue
        return queue

    def stop_queue(self, index: int) -> int:
        """Stop a queue; the index of the next request that the back-end would have taken ("GET_VRING_BASE")."""
        if self._enables:
            self.request(Q.SET_VRING_ENABLE, VringState(index, 0))
        body = self.request(Q.GET_VRING_BASE, VringState(index, 0))
        if queue := self._queues.pop(index, None):
            queue.close()
        return body.num if isinstance(body, VringState) else 0

    def reset(self) -> None:
        """Reset the device: its queues are gone, and every mapping ("RESET_DEVICE", or status 0, or stopped rings)."""
        if self._session.state.has(F.RESET_DEVICE):
            self.request(Q.RESET_DEVICE)
            self._reset_left = (self._reset_left or frozenset()).union(self._queues)
        elif self._session.state.has(F.STATUS):
            self.request(Q.SET_STATUS, U64(0))
        else:
            for index in list(self._queues):
                self.stop_queue(index)
        self._answering.serve_waiting()
        for window in self._windows.values():
            window.reset()
        for queue in self._queues.values():
            queue.close()
        self._queues.clear()

    def _finish_reset(self) -> None:
        """Do what RESET_DEVICE may have left undone, or done too much, before a queue is started.

        The rust-vmm crates forget which features were acknowledged, and enable no ring then. And they only disable the
        rings: a start would be of a ring that runs already, and its new kick would not be heard.
        """
        if self._reset_left is not None:
            self.request(Q.SET_FEATURES, U64(self._session.state.acknowledged))
            for index in sorted(self._reset_left):
                self.request(Q.GET_VRING_BASE, VringState(index, 0))
            self._reset_left = None

    def _start(self, queue: Queue) -> None:
        index = queue.index
        self.request(Q.SET_VRING_NUM, VringState(index, queue.size))
        self.request(Q.SET_VRING_BASE, VringState(index, queue.base))
        self.request(Q.SET_VRING_ADDR, queue.addresses)
        self.request(Q.SET_VRING_CALL, U64(index), [queue.call.fileno()])
        self.request(Q.SET_VRING_ERR, U64(index), [queue.err.fileno()])
        self.request(Q.SET_VRING_KICK, U64(index), [queue.kick.fileno()])
        if self._enables:
            self.request(Q.SET_VRING_ENABLE, VringState(index, 1))

    @property
    def _enables(self) -> bool:
        """Rings have to be enabled."""
        return bool(self._session.state.acknowledged >> VhostFeature.PROTOCOL_FEATURES & 1)

    # Requests and waiting

    def request(self, request: FrontendRequest, body: Payload | None = None, fds: Sequence[int] = ()) -> Payload | None:
        """Send any request and return the reply's payload, None for an acknowledgement.

        LocalProtocolError if it is not allowed now (nothing is sent), RequestFailed if the back-end says no.
        """
        self._enter()
        try:
            return self._driving.request(request, body, fds)
        finally:
            self._leave()

    def serve(self, timeout: float | None = None) -> None:
        """Answer the back-end's requests for `timeout` seconds, or until it goes (Disconnected)."""
        self.wait_for_any([], None if timeout is None else time.monotonic() + timeout)

    def wait_for(self, fd: HasFileno, deadline: float | None = None) -> bool:
        """Answer the back-end's requests until `fd` is readable (true) or `deadline` (time.monotonic) has passed."""
        return self.wait_for_any([fd], deadline) is not None

    def wait_for_any(self, fds: Sequence[HasFileno], deadline: float | None = None) -> int | None:
        """Answer the back-end's requests until one of `fds` is readable: the first that is; None at `deadline`."""
        self._enter()
        try:
            return self._driving.wait([fd.fileno() for fd in fds], deadline)
        finally:
            self._leave()

    def _enter(self) -> None:
        """One thread at a time waits in a front-end: two would take each other's replies."""
        if not self._lock.acquire(blocking=False):
            self._driving.check()
            raise LocalProtocolError("another thread waits in this front-end; only close() may be called meanwhile")

    def _leave(self) -> None:
        """What a back-end had mapped goes with the main channel."""
        try:
            if self._driving.lost:
                for window in self._windows.values():
                    window.reset()
        finally:
            self._lock.release()

    def _negotiate(self) -> None:
        if shared := self._device_features & ~DEVICE_FEATURES:
            text = f"SET_FEATURES features {self._device_features:#x} has bits that are not of a device type: {shared:#x}"
            raise LocalProtocolError(
                text, request="SET_FEATURES", field="features", value=self._device_features, limit=DEVICE_FEATURES
            )
        self.request(Q.GET_FEATURES)
        state = self._session.state
        if state.offered >> VhostFeature.PROTOCOL_FEATURES & 1:
            self._negotiate_protocol()
        self.request(Q.SET_OWNER)
        self.request(Q.SET_FEATURES, U64(self._session.state.offered & (self._features | self._device_features)))
        if self._session.state.has(F.BACKEND_REQ):
            self._open_requests()
        if self._session.state.has(F.SHMEM):
            self._reserve_windows()

    def _negotiate_protocol(self) -> None:
        reply = self.request(Q.GET_PROTOCOL_FEATURES)
        dialect, offered = self._session.dialect, self._session.state.protocol_offered
        self.diagnosis = diagnose_back_end(dialect, reply.value) if isinstance(reply, U64) else None
        self.request(Q.SET_PROTOCOL_FEATURES, U64(dialect.to_wire(_acceptable(offered & PROTOCOL_FEATURES))))
        if self._session.state.has(F.MQ):
            self.request(Q.GET_QUEUE_NUM)
        if self._session.state.has(F.CONFIGURE_MEM_SLOTS):
            self.request(Q.GET_MAX_MEM_SLOTS)

    def _open_requests(self) -> None:
        ours, theirs = socket.socketpair()
        with theirs:
            timeouts = {"partial_timeout": self._channel.partial_timeout, "reply_timeout": self._channel.reply_timeout}
            self._answering.open(Channel(ours, **timeouts))
            self.request(Q.SET_BACKEND_REQ_FD, None, [theirs.fileno()])

    def _reserve_windows(self) -> None:
        config = self.request(Q.GET_SHMEM_CONFIG)
        sizes = config.sizes if isinstance(config, ShmemConfig) else {}
        for shmid, size in sizes.items():
            self._windows[shmid] = Window(shmid, size, self._quota, populate=self._populate)
        own = type(self).on_shmem_map, type(self).on_shmem_unmap
        if own == (Frontend.on_shmem_map, Frontend.on_shmem_unmap):
            self._answering.use({shmid: window.core for shmid, window in self._windows.items()})
        self.shm = MappingProxyType({shmid: SharedRegion(window) for shmid, window in self._windows.items()})

    # Requests of the back-end

    def on_shmem_map(self, message: OwnedMessage) -> None:
        """SHMEM_MAP: show a file in a window."""
        body = _mmap_of(message)
        self._window(body, "SHMEM_MAP").map(body, message.fds[0].fileno())

    def on_shmem_unmap(self, message: OwnedMessage) -> None:
        """SHMEM_UNMAP: take a mapping away."""
        body = _mmap_of(message)
        self._window(body, "SHMEM_UNMAP").unmap(body)

    def on_config_change_msg(self, message: OwnedMessage) -> None:
        """CONFIG_CHANGE_MSG: nothing is kept of the configuration space, so there is nothing to do."""

    def refused(self, request: str, reason: str) -> None:
        """A request of the back-end was refused. For subclasses; logs the reason."""
        self._log.warning(f"refused: {reason}")

    def _window(self, body: Mmap, name: str) -> Window:
        window = self._windows.get(body.shmid)
        if window is None:
            known = ", ".join(map(str, self._windows)) or "none"
            text = f"{name} shmid {body.shmid} is not one of the regions, which are {known}"
            raise RemoteProtocolError(text, request=name, field="shmid", value=body.shmid, limit=known)
        return window

    # The end

    def close(self) -> None:
        """End the connection; every mapping, queue and shared byte is given back.

        May be called while another thread waits in this front-end: its call ends with Disconnected first.
        """
        self._driving.lose(Disconnected("closed"))
        self._channel.shutdown()
        with self._lock:
            self._close()

    def _close(self) -> None:
        self._channel.close()
        self._answering.close()
        for window in self._windows.values():
            window.close()
        for queue in self._queues.values():
            queue.close()
        if self._memory:
            self._memory.close()
        self._added.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, value: BaseException | None, trace: TracebackType | None) -> None:
        self.close()


def _mmap_of(message: OwnedMessage) -> Mmap:
    """The body of a SHMEM_MAP or SHMEM_UNMAP that was admitted."""
    if not isinstance(message.body, Mmap):
        raise RemoteProtocolError(f"{message.rule.name} carries no mapping", request=message.rule.name)
    return message.body


def _acceptable(value: int) -> int:
    """`value` without the features whose requirements it lacks, and without SHMEM where acknowledgements are lacking."""
    if not value >> F.REPLY_ACK & 1:
        value &= ~(1 << F.SHMEM)
    while missing := missing_requirements(value):
        value &= ~mask(feature for feature, _ in missing)
    return value
