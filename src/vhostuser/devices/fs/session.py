"""From one INIT to the next, or to DESTROY, or to a reset of the device, is a session ("Session Initialization")."""

from __future__ import annotations

import threading
from typing import Final, Protocol

from ...errors import VhostUserError
from ...fuse import structs as s
from ...fuse.numbers import VERSION, InitFlag
from ...fuse.rules import Call, MalformedRequest
from ...limited_log import LimitedLog
from .agreement import agree, another_version, reply
from .mapping import Mapper, Window
from .options import ShareOptions

_DAX: Final = InitFlag.MAP_ALIGNMENT | InitFlag.HAS_INODE_DAX


class SessionShare(Protocol):
    """What a session tells a share."""

    agreed: int
    """The mask of InitFlag that INIT agreed upon; set after it."""

    def reset(self) -> None:
        """The session has ended: nothing is open or known."""


class Session:
    """Begins and ends sessions. Both may be asked for in any thread, but happen one after the other."""

    def __init__(
        self, share: SessionShare, options: ShareOptions, window: Window | None, mapper: Mapper, limited: LimitedLog
    ) -> None:
        self._share, self._options, self._window, self._mapper, self._log = share, options, window, mapper, limited
        self._lock = threading.Lock()
        self._mapped = False
        """The window has been begun with since the reset."""
        self.live = False
        """There is a session."""

    def init(self, call: Call) -> s.InitOut:
        """INIT: begin a session; one that was there ends."""
        asked = call.arguments
        if not isinstance(asked, s.InitIn):
            raise MalformedRequest("it has no arguments")
        with self._lock:
            self._end()
            if asked.major > VERSION[0]:
                return another_version()
            agreed = agree(asked, self._options, dax=self._window is not None)
            if agreed & InitFlag.MAP_ALIGNMENT and not self._begin_window():
                agreed &= ~_DAX
            self._share.agreed = agreed
            self._mapper.enabled = bool(agreed & InitFlag.MAP_ALIGNMENT)
            self.live = True
        self._log.info(f"a guest speaks FUSE {asked.major}.{asked.minor}, flags {agreed:#x}")
        return reply(asked, agreed, self._window.alignment if self._window else 0)

    def destroy(self, call: Call) -> None:
        """DESTROY: end the session."""
        with self._lock:
            self._end()

    def reset(self) -> None:
        """The device was reset, or the guest is gone, and with it what was in the window."""
        with self._lock:
            self.live = self._mapper.enabled = self._mapped = False
            try:
                if self._window is not None:
                    self._window.reset()
            finally:
                self._share.reset()

    def _begin_window(self) -> bool:
        """Whether the window is where the guest sees it."""
        if self._window is None:
            return False
        try:
            self._window.begin()
            self._mapped = True
        except (OSError, VhostUserError) as error:
            text = getattr(error, "strerror", None) or error
            self._log.warning(f"there is no DAX in this session, for the window can't be mapped: {text}")
            return False
        return True

    def _end(self) -> None:
        """End the session, if there is one. The lock must be held."""
        if not self.live:
            return
        self.live = self._mapper.enabled = False
        try:
            if self._window is not None and self._mapped:
                self._window.end()
        except OSError as error:
            self._log.warning(f"what the guest wrote to the window is lost: {error}")
        self._share.reset()
