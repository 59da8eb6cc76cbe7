"""Drive a back-end, and answer its requests while waiting for its replies."""

from __future__ import annotations

import logging
import os
import socket
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from types import MappingProxyType, TracebackType
from typing import Any, Final, Self

from .counters import Counters
from .errors import DeadlineExpired, Disconnected, LocalProtocolError, ProtocolError, RemoteProtocolError, RequestFailed
from .limited_log import LimitedLog
from .memory.arena import Arena
from .memory.table import new_quota
from .memory.window import PROCESS, Window
from .plain import EXPIRED, NOT_TAKEN, AnyServer, new_server
from .protocol.dialects import RELEASED, Dialect, diagnose_back_end
from .protocol.framing import reply_frame, request_frame
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
from .protocol.rules import BACKEND, FRONTEND, Rule
from .protocol.rules import Channel as Side
from .protocol.session import Message, Owed, Ring, Role, Session, State, reply_owed
from .queue import Queue
from .shared_region import SharedRegion
from .transport.channel import PARTIAL_TIMEOUT, REPLY_TIMEOUT, Channel, OwnedFrame
from .transport.fds import HasFileno, OwnedFd, close_all
from .transport.listen import accept, connect, listen
from .transport.socket import wait
from .virtio.numbers import Feature, feature_names

log = logging.getLogger(__name__)
F, Q = ProtocolFeature, FrontendRequest

FEATURES: Final = mask((Feature.VERSION_1, Feature.RING_INDIRECT_DESC, VhostFeature.PROTOCOL_FEATURES))
PROTOCOL_FEATURES: Final = mask(
    (F.MQ, F.REPLY_ACK, F.BACKEND_REQ, F.CONFIG, F.BACKEND_SEND_FD, F.RESET_DEVICE, F.STATUS, F.SHMEM)
)
"""What this front-end makes use of."""


class Frontend:
    """A front-end connected to one back-end.

    It has no thread of its own: requests of the back-end are answered while a method waits, be it for a reply, for a queue,
    or in `serve`. Every method raises Disconnected once the back-end is gone, DeadlineExpired if it does not answer in
    `reply_timeout` seconds, and RemoteProtocolError if it breaks the protocol; the connection is over then.
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
    ) -> None:
        self._counters = Counters()
        self._server: AnyServer | None = None
        self.diagnosis: str | None = None
        """Why the back-end's shared memory is not to be had, if it looks like another dialect's."""
        self.shm: Mapping[int, SharedRegion] = MappingProxyType({})
        """The shared memory regions by shmid."""
        self._reply_timeout, self._partial_timeout = reply_timeout, partial_timeout
        self._main = Channel(sock, partial_timeout=partial_timeout, reply_timeout=reply_timeout)
        self._requests: Channel | None = None
        self._session = Session(Role.FRONTEND, State(rings=(Ring(),)), dialect=dialect)
        self._quota = new_quota("device", max_maps, PROCESS)
        self._populate = populate
        self._windows: dict[int, Window] = {}
        self._memory: Arena | None = None
        self._queues: dict[int, Queue] = {}
        self._lost: Exception | None = None
        self._log = LimitedLog(log)
        try:
            self._negotiate()
        except BaseException:
            self.close()
            raise

    @classmethod
    def connect(cls, path: str | os.PathLike[str], *, wait: float = 0.0, **options: Any) -> Self:
        """Connect to a back-end that listens on `path`, trying for `wait` seconds; options as for the class."""
        return cls(connect(path, wait=wait), **options)

    @classmethod
    def listen(cls, path: str | os.PathLike[str], *, timeout: float | None = None, **options: Any) -> Self:
        """Listen on `path` for a back-end that connects, at most `timeout` seconds; options as for the class."""
        with listen(path) as listener:
            try:
                return cls(accept(listener, timeout), **options)
            finally:
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
        total = replace(self._counters)
        if server := self._server:
            total.messages += server.messages
            total.acks += server.sent_acks
            total.maps += server.maps
            total.unmaps += server.unmaps
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

    def start_queue(self, index: int, *, size: int = 256) -> Queue:
        """Set up queue `index` with `size` descriptors, start and enable it. Needs `share_memory`."""
        if self._memory is None:
            raise LocalProtocolError("start_queue needs share_memory first", request="SET_VRING_ADDR")
        queue = Queue(index, size, self._memory, self)
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
        elif self._session.state.has(F.STATUS):
            self.request(Q.SET_STATUS, U64(0))
        else:
            for index in list(self._queues):
                self.stop_queue(index)
        self._answer_waiting()
        for window in self._windows.values():
            window.reset()
        for queue in self._queues.values():
            queue.close()
        self._queues.clear()
        if self._memory:
            self._memory.release(0)

    def _start(self, queue: Queue) -> None:
        index = queue.index
        self.request(Q.SET_VRING_NUM, VringState(index, queue.size))
        self.request(Q.SET_VRING_BASE, VringState(index, 0))
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

    # Waiting

    def serve(self, timeout: float | None = None) -> None:
        """Answer the back-end's requests for `timeout` seconds, or until it goes."""
        deadline = None if timeout is None else time.monotonic() + timeout
        self._await([], deadline)

    def wait_for(self, fd: HasFileno, deadline: float | None = None) -> bool:
        """Answer the back-end's requests until `fd` is readable (true) or `deadline` (time.monotonic) has passed."""
        return self._await([fd.fileno()], deadline) is not None

    def _await(self, others: Sequence[int], deadline: float | None) -> int | None:
        """Answer requests until one of `others` is readable, and return it; None once the deadline has passed."""
        self._check_open()
        main = self._main.fileno()
        while True:
            ready = self._serve_until((*others, main), deadline)
            if ready == main and main not in others:
                self._fail_on_main()
            if ready is None or ready in others:
                return ready

    def _serve_until(self, others: Sequence[int], deadline: float | None) -> int | None:
        """Answer requests until one of `others` is readable. What the back-end sent before comes first."""
        while True:
            if (server := self._server) and self._requests:
                left = -1.0 if deadline is None else max(0.0, deadline - time.monotonic())
                ready_fd = server.run(others, left)
                if ready_fd >= 0:
                    return ready_fd
                if ready_fd == EXPIRED:
                    return None
                self._take_over(server, self._requests, ready_fd)
                if deadline is None or time.monotonic() < deadline:
                    continue
            requests = self._requests
            ready = wait((*others, requests) if requests else others, deadline)
            if requests and requests.fileno() in ready:
                self._answer(requests)
                if deadline is None or time.monotonic() < deadline:
                    continue
            return next((fd for fd in others if fd in ready), None)

    def _take_over(self, server: AnyServer, channel: Channel, result: int) -> None:
        """Handle the long way what the plain one left: a request that is not plain, or the end of the channel."""
        data, fds, truncated = server.take()
        owned = [OwnedFd(fd) for fd in fds]
        if result == NOT_TAKEN or truncated:
            close_all(owned)
            reason = "fds of a message were lost" if truncated else "the back-end does not take its acknowledgements"
            self._end_requests(RemoteProtocolError(reason, fatal=True))
            return
        try:
            channel.resume(data, owned)
        except ProtocolError as error:
            self._end_requests(error)
            return
        if data or wait((channel,), 0):
            self._answer(channel)

    def _answer_waiting(self) -> None:
        """Answer what the back-end has asked so far."""
        while self._requests and wait((self._requests,), 0):
            self._answer(self._requests)

    def _fail_on_main(self) -> None:
        """Something came on the main channel that nobody asked for: its end, or a wrong message."""
        try:
            frame = self._main.receive()
            close_all(frame.fds)
            text = f"a message came that nobody asked for: request {frame.request}, flags {frame.flags:#x}"
            raise RemoteProtocolError(text, request=str(frame.request), fatal=True)
        except (Disconnected, DeadlineExpired, ProtocolError) as error:
            self._lose(error)
            raise

    # Requests of ours

    def request(self, request: FrontendRequest, body: Payload | None = None, fds: Sequence[int] = ()) -> Payload | None:
        """Send any request and return the reply's payload, None for an acknowledgement.

        LocalProtocolError if it is not allowed now (nothing is sent), RequestFailed if the back-end says no.
        """
        self._check_open()
        rule, before = FRONTEND[request], self._session.state
        ask = reply_owed(rule, before, need_reply=True) is Owed.ACK
        frame = request_frame(request, body, fds, need_reply=ask)
        self._session.admit(Side.FRONTEND, frame)
        owed = reply_owed(rule, before, need_reply=ask)
        try:
            self._main.send(frame, rule.name)
            answer = self._reply(rule, owed) if owed is not Owed.NOTHING else None
        except (Disconnected, DeadlineExpired, ProtocolError) as error:
            self._lose(error)
            raise
        if owed is Owed.ACK:
            if isinstance(answer, U64) and answer.value:
                self._session.state = before
                raise RequestFailed(rule.name, answer.value)
            return None
        return answer

    def _reply(self, rule: Rule, owed: Owed) -> Payload | None:
        deadline = time.monotonic() + self._reply_timeout
        if self._serve_until((self._main.fileno(),), deadline) is None:
            raise DeadlineExpired(f"{rule.name} was not answered within {self._reply_timeout:g} s")
        frame = self._main.receive()
        try:
            return self._session.admit_reply(rule, frame, owed)
        finally:
            close_all(frame.fds)

    def _negotiate(self) -> None:
        self.request(Q.GET_FEATURES)
        state = self._session.state
        if state.offered >> VhostFeature.PROTOCOL_FEATURES & 1:
            self._negotiate_protocol()
        self.request(Q.SET_OWNER)
        self.request(Q.SET_FEATURES, U64(self._session.state.offered & FEATURES))
        if self._session.state.has(F.BACKEND_REQ):
            self._open_requests()
        if self._session.state.has(F.SHMEM):
            self._reserve_windows()

    def _negotiate_protocol(self) -> None:
        self.request(Q.GET_PROTOCOL_FEATURES)
        dialect, offered = self._session.dialect, self._session.state.protocol_offered
        self.diagnosis = diagnose_back_end(dialect, dialect.to_wire(offered))
        self.request(Q.SET_PROTOCOL_FEATURES, U64(dialect.to_wire(_acceptable(offered & PROTOCOL_FEATURES))))
        if self._session.state.has(F.MQ):
            self.request(Q.GET_QUEUE_NUM)

    def _open_requests(self) -> None:
        ours, theirs = socket.socketpair()
        with theirs:
            channel = Channel(ours, partial_timeout=self._partial_timeout, reply_timeout=self._reply_timeout)
            self._requests = channel
            self.request(Q.SET_BACKEND_REQ_FD, None, [theirs.fileno()])

    def _reserve_windows(self) -> None:
        config = self.request(Q.GET_SHMEM_CONFIG)
        sizes = config.sizes if isinstance(config, ShmemConfig) else {}
        for shmid, size in sizes.items():
            self._windows[shmid] = Window(shmid, size, self._quota, populate=self._populate)
        self._compile()
        self.shm = MappingProxyType({shmid: SharedRegion(window) for shmid, window in self._windows.items()})

    def _compile(self) -> None:
        """Leave plain SHMEM requests to the plain loop, unless a subclass wants to see them."""
        own = type(self).on_shmem_map, type(self).on_shmem_unmap
        cores = {shmid: window.core for shmid, window in self._windows.items()}
        if self._requests and cores and own == (Frontend.on_shmem_map, Frontend.on_shmem_unmap):
            self._server = new_server(self._requests.socket, cores)

    # Requests of the back-end: decode, admit, perform, reply

    def _answer(self, channel: Channel) -> None:
        try:
            frame = channel.receive()
        except (Disconnected, DeadlineExpired, ProtocolError) as error:
            self._end_requests(error)
            return
        self._counters.messages += 1
        status = 0
        try:
            self._perform(self._session.admit(Side.BACKEND, frame))
        except (ProtocolError, OSError) as error:
            if isinstance(error, ProtocolError) and error.fatal:
                self._end_requests(error)
                return
            status = 1
            self._refuse(frame, error)
        finally:
            close_all(frame.fds)
        self._acknowledge(channel, frame, status)

    def _perform(self, message: Message) -> None:
        name = message.rule.name.lower()
        method: Callable[[Message], None] | None = getattr(self, f"on_{name}", None)
        if method is None:
            raise RemoteProtocolError(f"{message.rule.name} is not supported by this front-end", request=message.rule.name)
        method(message)

    def _acknowledge(self, channel: Channel, frame: OwnedFrame, status: int) -> None:
        rule, state = BACKEND.get(frame.request), self._session.state
        if rule is None:
            owed = Owed.ACK if frame.need_reply and state.has(F.REPLY_ACK) else Owed.NOTHING
        else:
            owed = reply_owed(rule, state, frame.need_reply)
        if owed is Owed.NOTHING:
            return
        self._counters.acks += 1
        try:
            channel.send(reply_frame(frame.request, U64(status)), "an acknowledgement")
        except (Disconnected, DeadlineExpired) as error:
            self._end_requests(error)

    def _refuse(self, frame: OwnedFrame, error: ProtocolError | OSError) -> None:
        self._counters.refused += 1
        rule = BACKEND.get(frame.request)
        self.refused(rule.name if rule else str(frame.request), str(error))

    def _end_requests(self, error: Exception) -> None:
        """The back-end channel is over; the main channel and what is mapped live on."""
        channel, self._requests = self._requests, None
        self._counters, self._server = self.counters, None
        if channel:
            channel.close()
            self._counters.closed += 1
            log.log(
                logging.INFO if isinstance(error, Disconnected) else logging.WARNING, "back-end channel closed: %s", error
            )

    def on_shmem_map(self, message: Message) -> None:
        """SHMEM_MAP: show a file in a window."""
        body = _mmap_of(message)
        self._window(body, "SHMEM_MAP").map(body, message.fds[0].fileno())
        self._counters.maps += 1

    def on_shmem_unmap(self, message: Message) -> None:
        """SHMEM_UNMAP: take a mapping away."""
        body = _mmap_of(message)
        self._window(body, "SHMEM_UNMAP").unmap(body)
        self._counters.unmaps += 1

    def on_config_change_msg(self, message: Message) -> None:
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

    def _check_open(self) -> None:
        if self._lost:
            raise Disconnected(f"the connection is over: {self._lost}")

    def _lose(self, error: Exception) -> None:
        """The main channel ended, and with it all that the back-end had mapped."""
        if not self._lost:
            self._lost = error
            self._counters.closed += 1
            for window in self._windows.values():
                window.reset()

    def close(self) -> None:
        """End the connection; every mapping, queue and shared byte is given back."""
        self._lost = self._lost or Disconnected("closed")
        self._main.close()
        self._counters, self._server = self.counters, None
        if self._requests:
            self._requests.close()
            self._requests = None
        for window in self._windows.values():
            window.close()
        for queue in self._queues.values():
            queue.close()
        if self._memory:
            self._memory.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, value: BaseException | None, trace: TracebackType | None) -> None:
        self.close()


def _mmap_of(message: Message) -> Mmap:
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
