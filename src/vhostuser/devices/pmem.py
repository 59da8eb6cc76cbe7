"""A file as a guest's persistent memory: the device behind `vhu-pmem` ("PMEM Device")."""

from __future__ import annotations

import errno
import logging
from types import TracebackType
from typing import Final, Self

from ..device import Device
from ..errors import RequestFailed, VhostUserError
from ..limited_log import LimitedLog, printable
from ..virtio.chain import DescriptorChain
from ..virtio.numbers import DeviceId
from ..virtio.pmem import REGION, REQUEST, RESPONSE, PmemConfig, PmemFeature, PmemRequest, PmemStatus
from .image import Image

log = logging.getLogger(__name__)
QUEUE_SIZE: Final = 1024
FLUSH_TIMEOUT: Final = 60.0
"""Seconds that a stop waits for a flush: a disk may be slow."""


class Refused(VhostUserError):
    """A request that can't be done as it stands."""


class PersistentMemory(Device):
    """An image that its driver reads and writes as memory: region 0, mapped once after every reset. It closes the image.

    What the driver has written is durable once a FLUSH that follows is done, and not before.
    """

    virtio_id = DeviceId.PMEM
    queue_sizes = (QUEUE_SIZE,)
    features = 1 << PmemFeature.SHMEM_REGION
    config = PmemConfig().pack()
    drain_timeout = FLUSH_TIMEOUT

    def __init__(self, image: Image) -> None:
        self.shared_memory = {REGION: image.size}
        self._image, self._log = image, LimitedLog(log)

    def driver_ready(self) -> None:
        """Map the image. A stop does not wait long for that: QEMU answers no SHMEM_MAP while it waits for the stop."""
        self.drain_timeout = Device.drain_timeout
        try:
            self.shm[REGION].map(self._image, shm_offset=0, len=self._image.size, writable=True)
        except RequestFailed as error:
            log.error("%s is not mapped: %s", printable(self._image.path), error)
        else:
            log.info("mapped %s, %d bytes", printable(self._image.path), self._image.size)
        finally:
            self.drain_timeout = FLUSH_TIMEOUT

    def process(self, queue: int, chain: DescriptorChain) -> None:
        """Do one request. One that has no room for the response comes back empty."""
        if chain.writable_size < RESPONSE.size:
            self._log.warning("a request has no room for its response")
            return
        status = PmemStatus.FAILED
        try:
            self._perform(chain.read(REQUEST.size))
            status = PmemStatus.OK
        except Refused as error:
            self._log.warning(str(error))
        except OSError as error:
            self._log.warning(f"a flush failed: {error.strerror} ({errno.errorcode.get(error.errno or 0, '')})")
        finally:
            chain.write(RESPONSE.pack(status))

    def _perform(self, request: bytes) -> None:
        if len(request) < REQUEST.size:
            raise Refused(f"a request has {len(request)} bytes, not {REQUEST.size}")
        (kind,) = REQUEST.unpack(request)
        if kind != PmemRequest.FLUSH:
            raise Refused(f"a request of type {kind} is not supported")
        if not self.shm[REGION].mappings:
            raise Refused("a flush came while the image is not mapped: what was written went nowhere")
        self._image.flush()

    def close(self) -> None:
        """Close the image."""
        self._image.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, value: BaseException | None, trace: TracebackType | None) -> None:
        self.close()
