"""What a device tells its front-end of objects that devices share by UUID, and what it asks of it."""

from __future__ import annotations

from uuid import UUID

from .errors import RemoteProtocolError, RequestFailed
from .port import Port
from .protocol.numbers import BackendRequest
from .protocol.payloads import U64, Uuid
from .transport.fds import OwnedFd, close_all

ADD, REMOVE, LOOKUP = (
    BackendRequest.SHARED_OBJECT_ADD,
    BackendRequest.SHARED_OBJECT_REMOVE,
    BackendRequest.SHARED_OBJECT_LOOKUP,
)


class Objects:
    """A device's way to the front-end's table of shared objects ("Virtio shared objects": a dma-buf or a memfd, by UUID).

    From any thread, as long as a front-end is connected. Raises LocalProtocolError if SHARED_OBJECT was not negotiated
    (nothing is sent then), Disconnected or DeadlineExpired if there is no answer.
    """

    def __init__(self, port: Port) -> None:
        self._port = port

    def add(self, uuid: UUID) -> None:
        """Tell of an object, which `Device.shared_object` is asked for from now on ("SHARED_OBJECT_ADD").

        RequestFailed if the front-end says no: there is one of that UUID, or no room. A front-end without acknowledgements
        says nothing.
        """
        self._tell(ADD, uuid)

    def remove(self, uuid: UUID) -> None:
        """Withdraw an object that this device has added ("SHARED_OBJECT_REMOVE"). RequestFailed if it is not one."""
        self._tell(REMOVE, uuid)

    def lookup(self, uuid: UUID) -> OwnedFd | None:
        """An fd of the object, which is yours; None if there is no such object to be had ("SHARED_OBJECT_LOOKUP").

        RemoteProtocolError if the answer says yes without an fd, as QEMU 11.1.3's does, or no with one.
        """
        with self._port.lock:
            body, fds = self._port.ask(LOOKUP, Uuid(uuid.bytes))
        status = body.value if isinstance(body, U64) else 0
        if fds and not status:
            return fds[0]
        close_all(fds)
        if fds or not status:
            text = (
                f"SHARED_OBJECT_LOOKUP reply u64 {status:#x} came with {len(fds)} fds: 0 comes with one, another with none"
            )
            raise RemoteProtocolError(text, request=LOOKUP.name, field="fds", value=len(fds), limit=int(not status))
        return None

    def _tell(self, request: BackendRequest, uuid: UUID) -> None:
        with self._port.lock:
            (status,) = self._port.send_all([(request, Uuid(uuid.bytes), ())])
        if status:
            raise RequestFailed(request.name, status, f"{request.name} {uuid} was refused by the front-end ({status:#x})")
