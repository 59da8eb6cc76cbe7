"""The shared memory regions of a front-end, and what the back-end has mapped there."""

from __future__ import annotations

from collections.abc import Mapping
from types import MappingProxyType

from .asking import Asking
from .errors import RemoteProtocolError
from .memory.table import AnyCore, new_quota
from .memory.window import PROCESS, Window
from .protocol.numbers import FrontendRequest
from .protocol.payloads import Mmap, ShmemConfig
from .shared_region import SharedRegion
from .transport.channel import OwnedMessage


class Windows:
    """One window a region, by shmid; at most `max_maps` mappings in all of them."""

    def __init__(self, max_maps: int, *, populate: bool) -> None:
        self._quota, self._populate = new_quota("device", max_maps, PROCESS), populate
        self._windows: dict[int, Window] = {}
        self.regions: Mapping[int, SharedRegion] = MappingProxyType({})
        """As users see them."""

    @property
    def cores(self) -> dict[int, AnyCore]:
        """Where the plain way maps and unmaps."""
        return {shmid: window.core for shmid, window in self._windows.items()}

    def learn(self, asking: Asking) -> None:
        """Ask the back-end for its regions, and reserve them ("GET_SHMEM_CONFIG")."""
        config = asking.request(FrontendRequest.GET_SHMEM_CONFIG)
        self._reserve(config.sizes if isinstance(config, ShmemConfig) else {})

    def map(self, message: OwnedMessage) -> None:
        """Show a file ("SHMEM_MAP")."""
        body = _mmap_of(message)
        self._window(body.shmid, "SHMEM_MAP").map(body, message.fds[0].fileno())

    def unmap(self, message: OwnedMessage) -> None:
        """Take a mapping away ("SHMEM_UNMAP")."""
        body = _mmap_of(message)
        self._window(body.shmid, "SHMEM_UNMAP").unmap(body)

    def _reserve(self, sizes: Mapping[int, int]) -> None:
        """Reserve regions of these sizes. Another back-end has to have the same: RemoteProtocolError."""
        if not self._windows:
            for shmid, size in sizes.items():
                self._windows[shmid] = Window(shmid, size, self._quota, populate=self._populate)
            self.regions = MappingProxyType({shmid: SharedRegion(window) for shmid, window in self._windows.items()})
        elif sizes != (before := {shmid: window.size for shmid, window in self._windows.items()}):
            text = f"GET_SHMEM_CONFIG mem_size {sizes} is not what it was with the last connection, {before}"
            raise RemoteProtocolError(
                text, request="GET_SHMEM_CONFIG", field="mem_size", value=str(sizes), limit=str(before)
            )

    def _window(self, shmid: int, request: str) -> Window:
        """The window that a request names. RemoteProtocolError if there is none."""
        window = self._windows.get(shmid)
        if window is None:
            known = ", ".join(map(str, self._windows)) or "none"
            text = f"{request} shmid {shmid} is not one of the regions, which are {known}"
            raise RemoteProtocolError(text, request=request, field="shmid", value=shmid, limit=known)
        return window

    def reset(self) -> None:
        """Take away every mapping."""
        for window in self._windows.values():
            window.reset()

    def close(self) -> None:
        """Take away every mapping and give the address space back."""
        for window in self._windows.values():
            window.close()


def _mmap_of(message: OwnedMessage) -> Mmap:
    """The body of a SHMEM_MAP or SHMEM_UNMAP that was admitted."""
    if not isinstance(message.body, Mmap):
        raise RemoteProtocolError(f"{message.rule.name} carries no mapping", request=message.rule.name)
    return message.body
