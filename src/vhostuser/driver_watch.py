"""Whether a driver runs the device, and what of its shared memory is there when one takes it.

QEMU tells its back-end of no reset (qemu-11.1: RESET_DEVICE and status 0 are never sent). What it does tell is where the
rings go on: where they stopped after `cont`, at their beginning after a reset. Rings that stopped there and start there
don't say whether there was a reset between; then a mapping of before is there or not, and taking it away makes sure. (A
split ring is at its beginning once in 65,536 requests, a packed one once in two rounds.)

Two threads meet here: the one that serves the front-end, and the queue thread, which calls `ready`.
"""

from __future__ import annotations

import logging
import threading
from collections.abc import Mapping

from .device import Device
from .errors import LocalProtocolError
from .faults import device_faults
from .limited_log import LimitedLog
from .port import Port
from .protocol.numbers import BackendRequest
from .protocol.payloads import Mmap
from .protocol.session import Session
from .shared_memory import SharedMemory
from .virtio.formats import ring_format

log = logging.getLogger(__name__)
UNMAP = BackendRequest.SHMEM_UNMAP


class DriverWatch:
    """Tells the device and its port of a driver that comes, stops or resets. A port that is not open maps nothing."""

    def __init__(
        self, device: Device, port: Port, session: Session, regions: Mapping[int, SharedMemory], limited: LimitedLog
    ) -> None:
        self._device, self._port, self._session, self._regions = device, port, session, regions
        self._log = limited
        self._gate = threading.Lock()
        self._open = False
        self._fresh = True
        self._begun = False
        self._bases: dict[int, int] = {}
        self._doubtful: list[Mmap] = []
        """What was mapped before a start that may have followed a reset."""
        port.connect(session)

    def moved(self) -> None:
        """The session has moved. A stop holds at once, a start once `begin` or `ready` has opened the port."""
        with self._gate:
            if self._open or not self._session.state.running:
                self._port.update()

    def begin(self) -> bool:
        """Rings are active: whether that is a start after which `ready` is due. Nothing if they were so before."""
        if self._begun:
            return False
        self._begun = True
        self._device.acknowledged = self._session.state.acknowledged
        first = ring_format(self._session.state.acknowledged).first_base
        rings = [(index, ring.base) for index, ring in enumerate(self._session.state.rings) if ring.started]
        resumed = not self._fresh and any(base not in (None, first) for _, base in rings)
        if not self._fresh and not resumed:
            self._doubt(was_reset=any(self._bases.get(index, first) != first for index, _ in rings))
        self._fresh = False
        if not self._doubtful:
            self._open_port()
        return bool(self._doubtful) or not resumed

    def _doubt(self, *, was_reset: bool) -> None:
        """The rings start at their beginning again, with or without a reset."""
        if was_reset:
            self._doubtful.clear()
        else:
            places = [
                (region.shmid, each.shm_offset, each.len) for region in self._regions.values() for each in region.mappings
            ]
            self._doubtful += [Mmap(shmid, 0, shm_offset, length, 0) for shmid, shm_offset, length in places]
        self.forget()
        if was_reset:
            self._reset_device()

    def ready(self) -> None:
        """In the queue thread: start the device with nothing mapped."""
        if self._doubtful:
            self._take_back()
            self._open_port()
        self._device.driver_ready()

    def _take_back(self) -> None:
        """Unmap what may be mapped. What a reset has taken already is refused, and that is as good."""
        with self._port.lock:
            if not self._session.state.running:
                raise LocalProtocolError("the driver stopped the device before it was ready", request="SHMEM_UNMAP")
            statuses = self._port.send_all([(UNMAP, body, ()) for body in self._doubtful])
        log.info("%d mappings were taken back, %d were gone", statuses.count(0), len(statuses) - statuses.count(0))
        self._doubtful.clear()

    def _open_port(self) -> None:
        with self._gate:
            self._open = self._session.state.running
            self._port.update()

    def stopped(self, index: int, base: int) -> None:
        """Ring `index` was stopped at `base`."""
        self._bases[index] = base
        if not any(ring.started for ring in self._session.state.rings):
            self._close_port()

    def reset(self) -> None:
        """The device is as new: its rings are stopped, nothing is mapped."""
        self._close_port()
        self.forget()
        self._fresh = True
        self._bases.clear()
        self._doubtful.clear()
        self._reset_device()

    def _close_port(self) -> None:
        with self._gate:
            self._open = self._begun = False
            self._port.update()

    def _reset_device(self) -> None:
        """Tell the device, while it can map nothing; what it makes of it does not undo the reset."""
        try:
            self._device.reset()
        except device_faults():
            self._log.exception(f"{type(self._device).__name__}.reset failed")

    def forget(self) -> None:
        """All mappings have gone."""
        for region in self._regions.values():
            region.forget()
