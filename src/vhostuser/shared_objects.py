"""The table of the objects that back-ends share with each other by UUID ("VHOST_USER_BACKEND_SHARED_OBJECT_ADD")."""

from __future__ import annotations

import threading
from typing import Final, Protocol
from uuid import UUID

from .errands import Errand
from .errors import RemoteProtocolError, RequestFailed

QUOTA: Final = 4096
ADD, REMOVE, LOOKUP = "SHARED_OBJECT_ADD", "SHARED_OBJECT_REMOVE", "SHARED_OBJECT_LOOKUP"


class Owner(Protocol):
    """The front-end of a back-end that has added objects."""

    def do(self, errand: Errand) -> None:
        """Have its back-end asked, soon, by this thread or another."""

    def visit(self) -> None:
        """Ask it in this thread, if another one has left undone what it was to do."""


class SharedObjects:
    """Which back-end has which shared object, for all front-ends that are given this table.

    A front-end that is given one negotiates SHARED_OBJECT, if it is offered. Its back-end may add objects, and look up those
    of others and of its own; whoever looks one up gets an fd from the one that added it. At most `quota` objects, of all
    back-ends together, are in it; those of a connection that is over are not. Any thread may use it.
    """

    def __init__(self, *, quota: int = QUOTA) -> None:
        self._quota = quota
        self._lock = threading.RLock()  # re-entrant: a signal handler may close a front-end whose thread has it
        self._owners: dict[UUID, Owner] = {}

    def __len__(self) -> int:
        return len(self._owners)

    def __contains__(self, uuid: UUID) -> bool:
        return uuid in self._owners

    def add(self, uuid: UUID, owner: Owner) -> None:
        """Put an object in. RemoteProtocolError if it is there, whoever added it, or the table is full. (For a Frontend.)"""
        with self._lock:
            if uuid in self._owners:
                raise _refusal(ADD, uuid, "is in the table of shared objects already")
            if len(self._owners) >= self._quota:
                text = f"{ADD} {uuid} passes the quota of {self._quota} shared objects"
                raise RemoteProtocolError(text, request=ADD, field="objects", value=len(self._owners), limit=self._quota)
            self._owners[uuid] = owner

    def remove(self, uuid: UUID, owner: Owner) -> None:
        """Take an object out. RemoteProtocolError if that owner has none of that UUID. (For a Frontend.)"""
        with self._lock:
            if self._owners.get(uuid) is not owner:
                raise _refusal(REMOVE, uuid, "was not added by this back-end")
            del self._owners[uuid]

    def owner(self, uuid: UUID) -> Owner:
        """Who has added an object. RequestFailed if nobody has. (For a Frontend.)"""
        with self._lock:
            owner = self._owners.get(uuid)
        if owner is None:
            raise RequestFailed(LOOKUP, 1, f"{LOOKUP} {uuid} is not in the table of shared objects")
        return owner

    def forget(self, owner: Owner) -> None:
        """Take out all that this owner has added. (For a Frontend.)"""
        with self._lock:
            for uuid in [uuid for uuid, each in self._owners.items() if each is owner]:
                self._owners.pop(uuid, None)  # a signal handler may have been faster


def _refusal(request: str, uuid: UUID, why: str) -> RemoteProtocolError:
    return RemoteProtocolError(f"{request} {uuid} {why}", request=request, field="uuid", value=str(uuid))
