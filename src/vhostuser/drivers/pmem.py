"""Drive persistent memory without a VM ("PMEM Device")."""

from __future__ import annotations

import time
from typing import Final

from ..errors import DeadlineExpired, LocalProtocolError, RemoteProtocolError, RequestFailed
from ..frontend import Frontend
from ..protocol.numbers import mask
from ..queue import TIMEOUT
from ..virtio.pmem import REGION, REQUEST, RESPONSE, PmemFeature, PmemRequest, PmemStatus

FEATURES: Final = mask((PmemFeature.SHMEM_REGION,))
"""What this driver makes use of: give it to the front-end as `features`."""
STEP: Final = 0.01
"""Seconds between two looks at what is mapped."""


class PmemDriver:
    """Persistent memory that is a shared memory region. Needs `share_memory` before; an answer may take `timeout` seconds.

    Begins when the device has mapped it: DeadlineExpired if it does not; LocalProtocolError without such a region.
    """

    def __init__(self, frontend: Frontend, queue: int = 0, size: int = 8, *, timeout: float = TIMEOUT) -> None:
        self.timeout = timeout
        if f"BIT_{PmemFeature.SHMEM_REGION:d}" not in frontend.features or REGION not in frontend.shm:
            text = "SHMEM_REGION (bit 0) was not negotiated, or the device has no shared memory region 0"
            raise LocalProtocolError(text, field="features", limit="SHMEM_REGION")
        self.region = frontend.shm[REGION]
        """The memory itself."""
        self.queue = frontend.start_queue(queue, size=size)
        self._await_mapping(frontend)

    def _await_mapping(self, frontend: Frontend) -> None:
        deadline = time.monotonic() + self.timeout
        while not self.region.mappings:
            if time.monotonic() > deadline:
                raise DeadlineExpired(f"the device has mapped nothing within {self.timeout:g} s")
            frontend.serve(STEP)

    @property
    def size(self) -> int:
        """Bytes of memory."""
        return self.region.size

    def read(self, offset: int, len: int) -> bytes:
        """Copy bytes out; MemoryFault if they are not there."""
        return self.region.read(offset, len)

    def write(self, offset: int, data: bytes) -> None:
        """Copy bytes in; MemoryFault if there is no place for them. They are safe after a `flush`."""
        self.region.write(offset, data)

    def flush(self) -> None:
        """Make durable what was written. RequestFailed with the device's status if it is not."""
        answer = self.queue.exchange(REQUEST.pack(PmemRequest.FLUSH), RESPONSE.size, timeout=self.timeout)
        if len(answer) < RESPONSE.size:
            text = f"FLUSH was answered with {len(answer)} bytes, not {RESPONSE.size}"
            raise RemoteProtocolError(text, field="len", value=len(answer), limit=RESPONSE.size)
        (status,) = RESPONSE.unpack(answer)
        if status != PmemStatus.OK:
            raise RequestFailed("FLUSH", status, f"FLUSH was answered with {status:#x}: what was written may be lost")
