"""Drive a back-end, and answer its requests while waiting for its replies."""

from __future__ import annotations

import contextlib
import logging
import os
import socket
import time
from collections.abc import Mapping, Sequence
from types import TracebackType
from typing import Self, Unpack
from uuid import UUID

from .answering import Answering
from .counters import Counters
from .driving import Driving
from .errors import DeadlineExpired, Disconnected, LocalProtocolError, RemoteProtocolError, RequestFailed
from .frontend_options import FrontendOptions
from .limited_log import LimitedLog
from .memory.added import AddedBlock
from .negotiation import negotiate, negotiate_again, wanted_features, wanted_protocol_features
from .protocol.dialects import RELEASED, Dialect
from .protocol.layout import Payload
from .protocol.numbers import FrontendRequest, ProtocolFeature, protocol_feature_names
from .protocol.payloads import U64, Config
from .protocol.regions import DEVICE_QUOTA
from .protocol.session import Session
from .protocol.state import Ring, Role, State
from .queue import Queue
from .queues import Queues
from .shared_objects import SharedObjects
from .shared_region import SharedRegion
from .sharing import Sharing
from .tracking import Tracking
from .transport.channel import PARTIAL_TIMEOUT, REPLY_TIMEOUT, OwnedMessage
from .transport.fds import HasFileno, OwnedFd
from .transport.listen import accept, connect, listen
from .virtio.numbers import feature_names
from .windows import Windows

log = logging.getLogger(__name__)
F, Q = ProtocolFeature, FrontendRequest
__all__ = ["Frontend", "FrontendOptions"]


class Frontend:
    """A front-end connected to one back-end.

    It has no thread of its own: requests of the back-end are answered while a method waits, be it for a reply, for a queue,
    or in `serve`. Every method raises Disconnected once the back-end is gone, DeadlineExpired if it does not answer in
    `reply_timeout` seconds, and RemoteProtocolError if it breaks the protocol; the connection is over then.

    `dialect` is the numbering of the shared memory messages, `max_maps` the most live mappings, `partial_timeout` the
    seconds for the rest of a message that has begun; `populate` reads the pages of a mapping in when it is made; `packed`
    takes packed rings where the back-end offers them, `in_order` IN_ORDER, so that requests come back in the order in which
    they were submitted. `features` are bits of the device type, as a mask, that are acknowledged if they are offered.
    `inflight` takes the features of inflight tracking where they are offered; `track_inflight` is needed before any queue
    then. `inband` takes INBAND_NOTIFICATIONS: kicks and calls are messages, each of which is answered, for back-ends that
    can't do with eventfds ("In-band notifications"). `shared_objects` is the table of what back-ends share with each
    other by UUID, the same one for all front-ends of a VM; with it SHARED_OBJECT is negotiated where it is offered.
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
        in_order: bool = False,
        features: int = 0,
        inflight: bool = False,
        inband: bool = False,
        shared_objects: SharedObjects | None = None,
    ) -> None:
        self.diagnosis: str | None = None
        """Why the back-end's shared memory is not to be had, if it looks like another dialect's."""
        self._session = Session(Role.FRONTEND, State(rings=(Ring(),)), dialect=dialect)
        self._closed, self._ends = False, 0
        self._windows = Windows(max_maps, populate=populate)
        self._answering = Answering(self._session, self)
        timeouts = {"partial_timeout": partial_timeout, "reply_timeout": reply_timeout}
        self._driving = Driving(sock, self._session, self._answering, self._windows, table=shared_objects, **timeouts)
        self._sharing = Sharing(self)
        self._tracking = Tracking(self, self._session)
        self._queues = Queues(self, self._session, self._tracking)
        self._log = LimitedLog(log)
        try:
            wanted = wanted_protocol_features(inflight=inflight, inband=inband, shared_objects=shared_objects is not None)
            virtio = wanted_features(packed=packed, in_order=in_order, device=features)
            self.diagnosis = negotiate(self, self._session, virtio, wanted)
            self._driving.open_requests()
            self._reserve_windows()
        except BaseException:
            self.close()
            raise

    def __repr__(self) -> str:
        state = "closed" if self._closed else "disconnected" if self._driving.lost else "connected"
        return f"<Frontend: {state}, {self.queue_count} queues, {len(self.shm)} regions>"

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
                listener.remove_name()

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

    @property
    def shm(self) -> Mapping[int, SharedRegion]:
        """The shared memory regions by shmid."""
        return self._windows.regions

    def config(self, offset: int, size: int) -> bytes:
        """`size` bytes of the device's configuration space. RequestFailed if they are not there ("GET_CONFIG")."""
        body = self.request(Q.GET_CONFIG, Config(offset, size, 0, bytes(size)))
        if not isinstance(body, Config) or body.size != size:
            raise RequestFailed("GET_CONFIG", 1, f"GET_CONFIG offset {offset} size {size} was refused by the back-end")
        return body.payload

    @property
    def connections(self) -> int:
        """How many connections it has had: one, and another for each back-end that `reconnect` has reached."""
        return self._ends + 1

    @property
    def counters(self) -> Counters:
        """What this side has counted so far."""
        total = self._answering.counters
        total.closed += self._ends + (self._driving.lost is not None)
        return total

    def shared_object(self, uuid: UUID) -> OwnedFd | None:
        """An fd of a shared object of the back-end, which is yours; None if it gives none ("GET_SHARED_OBJECT").

        LocalProtocolError if SHARED_OBJECT was not negotiated. It asks the back-end, whatever is in the table.
        """
        return self._driving.shared_object(uuid)

    # Memory and queues

    def share_memory(self, size: int) -> None:
        """Share `size` bytes of fresh memory, whole pages, with the back-end ("SET_MEM_TABLE"). Once, before any queue."""
        self._sharing.share(size)

    def add_memory(self, size: int) -> AddedBlock:
        """Share `size` bytes more, whole pages, also while queues run ("ADD_MEM_REG"). Needs `share_memory`.

        RequestFailed if the back-end says no, LocalProtocolError if it has no memory slots or none is left.
        """
        return self._sharing.add(size)

    def remove_memory(self, block: AddedBlock) -> None:
        """Take memory that was added away again; no request may use it any more ("REM_MEM_REG")."""
        self._sharing.remove(block)

    def start_queue(self, index: int, *, size: int = 256, indirect: bool = False) -> Queue:
        """Set up queue `index` with `size` descriptors, start and enable it. Needs `share_memory`.

        With `indirect` it holds `size` requests, however many buffers each has ("Indirect Descriptors"); LocalProtocolError
        if the back-end does not offer RING_INDIRECT_DESC. One that was suspended is the same queue, and goes
        on.
        """
        arena = self._sharing.needed("start_queue", "SET_VRING_ADDR")
        return self._queues.start(index, size, arena, indirect=indirect)

    def stop_queue(self, index: int) -> int:
        """Stop a queue; the index of the next request that the back-end would have taken ("GET_VRING_BASE").

        Back-ends finish what they have begun, but may leave it in progress where GET_VRING_BASE_INFLIGHT was negotiated. So
        after `track_inflight` the queue is only suspended, and goes on when it is started again; a `reset` ends it.
        """
        return self._queues.stop(index)

    def reset(self) -> None:
        """Reset the device: its queues are gone, and every mapping ("RESET_DEVICE", or status 0, or stopped rings)."""
        if self._session.state.has(F.RESET_DEVICE):
            self.request(Q.RESET_DEVICE)
            self._queues.were_reset()
        elif self._session.state.has(F.STATUS):
            self.request(Q.SET_STATUS, U64(0))
        else:
            self._queues.stop_all()
        self._answering.serve_waiting()
        self._windows.reset()
        self._queues.close()
        self._tracking.renew()

    def track_inflight(self, queue_size: int = 256) -> None:
        """Let the back-end keep books of the requests that it has, for queues of at most `queue_size` descriptors.

        They are kept here, and let `reconnect` go on without a request that is lost or done twice. Needs `inflight=True`, a
        back-end that offers it, and to come before any queue. RequestFailed if the back-end has no room for it.
        """
        self._tracking.begin(queue_size)

    # Another back-end

    def reconnect(self, to: str | os.PathLike[str] | socket.socket, *, wait: float = 0.0, resubmit: bool = False) -> None:
        """Go on with the back-end that came after one which is gone: at the path `to`, or on that socket.

        Memory, queues and features stay as they are, regions are empty. `wait` are the seconds to wait for the end of the
        old one and for the new one to listen. The old one must be dead, not only disconnected: both would write to the same
        queues. If this raises, nothing is lost, and it may be tried again.

        With `track_inflight` every request in flight is done once: `Queue.finish` and `Queue.completions` give it as if
        nothing had happened. Without, nobody knows which of them the old one has done. LocalProtocolError then, unless none
        is in flight; or `resubmit` gives all of them to the new one, so that each is done *at least* once: right for reads,
        and for writes that nobody overtakes.

        AddressError and Disconnected if there is no back-end, RemoteProtocolError if it lacks what was agreed with the old
        one, QueueBroken if that has left nonsense in a queue. `resubmit` is the way out of the latter, also with
        `track_inflight`: every queue begins anew with what is in flight.
        """
        deadline = time.monotonic() + wait
        with self._driving.turn():
            self._await_end(deadline)
            self._queues.settle(resubmit=resubmit)
            self._windows.reset()
            sock = to if isinstance(to, socket.socket) else self._connect(to, deadline)
            self._go_on(sock)

    def _connect(self, path: str | os.PathLike[str], deadline: float) -> socket.socket:
        """A connection to a path, unless this front-end is closed meanwhile: Disconnected."""
        return connect(path, wait=max(0.0, deadline - time.monotonic()), check=self._check_open)

    def _check_open(self) -> None:
        if self._closed:
            raise Disconnected("closed")

    def _await_end(self, deadline: float) -> None:
        """The connection is over at the deadline, though not by `close`; else LocalProtocolError."""
        with contextlib.suppress(Disconnected, DeadlineExpired, RemoteProtocolError):
            self.wait_for_any([], deadline)
        if self._closed or not self._driving.lost:
            text = "this front-end was closed" if self._closed else "the back-end is still there"
            raise LocalProtocolError(f"reconnect: {text}")

    def _go_on(self, sock: socket.socket) -> None:
        """Bring a new back-end to where the old one was."""
        before = self._session.state
        self._answering.close()
        self._ends += 1
        self._session.state = State(rings=(Ring(),))
        try:
            self._driving.begin(sock)
            self._check_open()
            negotiate_again(self, self._session, before)
            self._driving.open_requests()
            self._reserve_windows()
            self._tracking.resume()
            self._sharing.resume()
            self._queues.resume()
        except BaseException as error:
            self._driving.lose(error if isinstance(error, Exception) else Disconnected("interrupted"))
            self._answering.close()
            self._driving.channel.shutdown()
            self._session.state = before
            raise

    # Requests and waiting

    def request(self, request: FrontendRequest, body: Payload | None = None, fds: Sequence[int] = ()) -> Payload | None:
        """Send any request and return the reply's payload, None for an acknowledgement.

        LocalProtocolError if it is not allowed now (nothing is sent), RequestFailed if the back-end says no.
        """
        return self._driving.request(request, body, fds)

    def request_with_fds(
        self, request: FrontendRequest, body: Payload | None = None, fds: Sequence[int] = ()
    ) -> tuple[Payload | None, tuple[OwnedFd, ...]]:
        """As `request`; besides, the fds that came with the reply. They are the caller's to close."""
        return self._driving.request_with_fds(request, body, fds)

    def serve(self, timeout: float | None = None) -> None:
        """Answer the back-end's requests for `timeout` seconds, or until it goes (Disconnected)."""
        self.wait_for_any([], None if timeout is None else time.monotonic() + timeout)

    def wait_for(self, fd: HasFileno, deadline: float | None = None) -> bool:
        """Answer the back-end's requests until `fd` is readable (true) or `deadline` (time.monotonic) has passed."""
        return self.wait_for_any([fd], deadline) is not None

    def wait_for_any(self, fds: Sequence[HasFileno], deadline: float | None = None) -> int | None:
        """Answer the back-end's requests until one of `fds` is readable: the first that is; None at `deadline`."""
        return self._driving.wait([fd.fileno() for fd in fds], deadline)

    def _reserve_windows(self) -> None:
        if not self._session.state.has(F.SHMEM):
            return
        self._windows.learn(self)
        own = type(self).on_shmem_map, type(self).on_shmem_unmap
        if own == (Frontend.on_shmem_map, Frontend.on_shmem_unmap):
            self._answering.use(self._windows.cores)

    # Requests of the back-end

    def on_shmem_map(self, message: OwnedMessage) -> None:
        """SHMEM_MAP: show a file in a window."""
        self._windows.map(message)

    def on_shmem_unmap(self, message: OwnedMessage) -> None:
        """SHMEM_UNMAP: take a mapping away."""
        self._windows.unmap(message)

    def on_vring_call(self, message: OwnedMessage) -> None:
        """VRING_CALL: a queue has answers."""
        self._queues.hear("call", message.body)

    def on_vring_err(self, message: OwnedMessage) -> None:
        """VRING_ERR: a queue is broken."""
        self._queues.hear("err", message.body)

    def on_config_change_msg(self, message: OwnedMessage) -> None:
        """CONFIG_CHANGE_MSG: nothing is kept of the configuration space, so there is nothing to do."""

    def on_shared_object_add(self, message: OwnedMessage) -> None:
        """SHARED_OBJECT_ADD: the back-end has an object for others."""
        self._driving.lending.add(message)

    def on_shared_object_remove(self, message: OwnedMessage) -> None:
        """SHARED_OBJECT_REMOVE: it has it no more."""
        self._driving.lending.remove(message)

    def on_shared_object_lookup(self, message: OwnedMessage) -> OwnedFd | None:
        """SHARED_OBJECT_LOOKUP: the fd of an object of any back-end, which goes with the answer and is closed then."""
        return self._driving.lending.lookup(message)

    def refused(self, request: str, reason: str) -> None:
        """A request of the back-end was refused. For subclasses; logs the reason."""
        self._log.warning(f"refused: {reason}")

    # The end

    def close(self) -> None:
        """End the connection; every mapping, queue and shared byte is given back.

        May be called while another thread waits in this front-end: its call ends with Disconnected first.
        """
        self.shutdown()
        with self._driving.lock:
            self._close()
        self._driving.visit()

    def shutdown(self) -> None:
        """End the connection, from any thread, and do not wait for who waits in it; `close` gives back the rest."""
        self._closed = True
        self._driving.lose(Disconnected("closed"))
        self._driving.channel.shutdown()
        self._answering.shutdown()

    def _close(self) -> None:
        self._driving.close()
        self._answering.close()
        self._windows.close()
        self._queues.close()
        self._tracking.close()
        self._sharing.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, value: BaseException | None, trace: TracebackType | None) -> None:
        self.close()
