"""One front-end's part in sharing objects: what its back-end adds, withdraws and looks up, and who asks it for its own."""

from __future__ import annotations

import time
from collections.abc import Sequence
from typing import Protocol
from uuid import UUID

from .answering import PATIENCE, PutOff
from .errands import Ask, Errand, Errands
from .errors import RemoteProtocolError
from .protocol.payloads import Uuid
from .shared_objects import Owner, SharedObjects
from .transport.channel import OwnedMessage
from .transport.fds import HasFileno, OwnedFd
from .transport.socket import wait


class Host(Protocol):
    """The front-end's main channel, which one thread at a time has."""

    lost: Exception | None

    @property
    def awaits_reply(self) -> bool:
        """Its back-end can't be asked anything now."""

    @property
    def awaited_on(self) -> Sequence[HasFileno]:
        """Where the reply comes, if one is awaited."""

    def visit(self) -> None:
        """Run the errands in this thread, unless another one has the front-end, which will."""

    def run_errands(self) -> None:
        """Run them in the thread that has the front-end; if it awaits a reply, once that is there."""


class Lending:
    """The `Owner` that one front-end is in the table."""

    def __init__(self, table: SharedObjects, ask: Ask, host: Host) -> None:
        self._table, self._host = table, host
        self.errands = Errands(ask)
        """What others want of this back-end."""

    def add(self, message: OwnedMessage) -> None:
        """SHARED_OBJECT_ADD: an object is to be had of this back-end."""
        self._table.add(_uuid_of(message), self)
        if self._host.lost:  # by another thread, whose `forget` came too early
            self.forget()

    def remove(self, message: OwnedMessage) -> None:
        """SHARED_OBJECT_REMOVE: it is not any more."""
        self._table.remove(_uuid_of(message), self)

    def lookup(self, message: OwnedMessage) -> OwnedFd:
        """SHARED_OBJECT_LOOKUP: the fd of an object, from whoever has it; RequestFailed if there is none to be had.

        What others want of this back-end is done meanwhile: they may be who is waited for. PutOff if it has to be asked
        itself and can't be now; or if a reply is there that was awaited, for others may wait until that is taken.
        """
        uuid = _uuid_of(message)
        owner = self._table.owner(uuid)
        if owner is self and self._host.awaits_reply:
            raise PutOff
        errand = Errand(uuid, self.errands.wake)
        try:
            self._await(errand, owner, time.monotonic() + PATIENCE)
        except BaseException:  # an interrupt: its fd is nobody's then
            errand.drop()
            raise
        return errand.take()

    def _await(self, errand: Errand, owner: Owner, deadline: float) -> None:
        owner.do(errand)
        self._host.run_errands()  # of some it was told while a reply was awaited
        while not errand.done and not self._host.lost and time.monotonic() < deadline:
            reply = self._host.awaited_on
            if reply and wait(reply, 0):
                raise PutOff
            wait((self.errands, *reply), deadline)
            self.errands.clear()
            self._host.run_errands()
            owner.visit()

    def do(self, errand: Errand) -> None:
        """As an `Owner`: by this thread if nobody is in the front-end, else by the one who is."""
        self.errands.put(errand)
        self.visit()

    def visit(self) -> None:
        """As an `Owner`: those that wait for it, too."""
        self._host.visit()

    def forget(self) -> None:
        """The connection is over: nothing is to be had of its back-end any more."""
        self._table.forget(self)
        self.errands.wake()

    def close(self) -> None:
        """So is the front-end. Nobody else is in it."""
        self._table.forget(self)
        self.errands.close()


def lookup_deadline(reply_timeout: float) -> float | None:
    """Until when a lookup that begins now waits for a back-end's reply; None if no less long than any request does."""
    return time.monotonic() + PATIENCE if reply_timeout > PATIENCE else None


def _uuid_of(message: OwnedMessage) -> UUID:
    """The UUID of a SHARED_OBJECT request that was admitted."""
    if not isinstance(message.body, Uuid):
        raise RemoteProtocolError(f"{message.rule.name} carries no UUID", request=message.rule.name)
    return UUID(bytes=message.body.uuid)
