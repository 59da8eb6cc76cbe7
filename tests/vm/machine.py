"""QEMU with one vhost-user device and no guest: the test is the driver.

`bring_up` does what a guest's driver does ("Device Initialization"); after `system_reset` it is called again.
"""

from __future__ import annotations

import os
import socket
import subprocess
import tempfile
import time
from collections.abc import Sequence
from contextlib import ExitStack, suppress
from types import TracebackType
from typing import Self

from vhostuser.virtio.numbers import Feature, Status
from vhostuser.vm.qmp import Qmp
from vhostuser.vm.tree import qemu_command

from .packed_ring import PackedRing
from .pci import SHARED_MEMORY, PciFunction, Structure
from .qtest import QTest
from .ring import Ring

COMMON, NOTIFY, ISR, DEVICE = 1, 2, 3, 4  # cfg_type of the structures
RAM = 128 << 20
FIRST_RING, RING_BYTES = 16 << 20, 4 << 20
NEVER_ACCEPTED = 1 << Feature.RING_EVENT_IDX

# Fields of the common configuration structure ("Common configuration structure layout")
DEVICE_FEATURE_SELECT, DEVICE_FEATURE, DRIVER_FEATURE_SELECT, DRIVER_FEATURE = 0x00, 0x04, 0x08, 0x0C
NUM_QUEUES, DEVICE_STATUS = 0x12, 0x14
QUEUE_SELECT, QUEUE_SIZE, QUEUE_ENABLE, QUEUE_NOTIFY_OFF = 0x16, 0x18, 0x1C, 0x1E
QUEUE_DESC, QUEUE_DRIVER, QUEUE_DEVICE = 0x20, 0x28, 0x30


def generic_device(*, virtio_id: int = 26, queues: int = 1, queue_size: int = 128, config_size: int = 64) -> str:
    """QEMU's device for a back-end of any kind, with shared memory. QEMU 11.1 aborts on ids that it has no name for."""
    sizes = f"num_vqs={queues},vq_size={queue_size},config_size={config_size}"
    return f"vhost-user-test-device-pci,virtio-id={virtio_id},{sizes}"


class QTestMachine:
    """A context manager around QEMU, connected to the back-end that listens at `path`. `seconds` bounds every wait.

    `arguments` are for QEMU in place of the usual machine and device.
    """

    def __init__(
        self,
        path: str | os.PathLike[str],
        *,
        device: str | None = None,
        command: Sequence[str] | None = None,
        arguments: Sequence[str] | None = None,
        seconds: float = 10.0,
    ) -> None:
        self.seconds = seconds
        words = arguments or usual_arguments(os.fspath(path), device or generic_device())
        self._words = [*(command or qemu_command()), "-accel", "qtest", *words]
        self._rings: list[Ring | PackedRing] = []
        self._structures: dict[int, Structure] = {}
        self._windows: dict[int, Structure] = {}

    def __enter__(self) -> Self:
        with ExitStack() as opened:
            self._said = opened.enter_context(tempfile.TemporaryFile("a+b"))
            qtest, qtest_of_qemu = _pair(opened)
            monitor, monitor_of_qemu = _pair(opened)
            self.qtest, self.qmp = QTest(qtest, self.seconds), Qmp(monitor, self.seconds)
            self.process = self._start(qtest_of_qemu.fileno(), monitor_of_qemu.fileno())
            opened.callback(self._end)
            qtest_of_qemu.close()
            monitor_of_qemu.close()
            try:
                self.qmp.greet()
                self.pci = PciFunction(self.qtest)
            except Exception as error:
                self._explain(error)
                raise
            self._opened = opened.pop_all()
        return self

    def _start(self, qtest: int, monitor: int) -> subprocess.Popen[bytes]:
        words = [*self._words, "-chardev", f"socket,id=qtest,fd={qtest}", "-qtest", "chardev:qtest"]
        words += ["-qtest-log", os.devnull, "-chardev", f"socket,id=qmp,fd={monitor}", "-qmp", "chardev:qmp"]
        return subprocess.Popen(
            words, stdin=subprocess.DEVNULL, stdout=self._said, stderr=self._said, pass_fds=(qtest, monitor)
        )

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        with self._opened:
            if error is not None:
                self._explain(error)

    def _end(self) -> None:
        self.process.terminate()  # does nothing if it has ended
        try:
            self.process.wait(self.seconds)
        except subprocess.TimeoutExpired:
            self.process.kill()
            self.process.wait(self.seconds)

    def _explain(self, error: BaseException) -> None:
        with suppress(subprocess.TimeoutExpired):
            self.process.wait(0.2)  # an error often is the first sign that QEMU ends
        state = "runs" if self.alive() else f"ended with {self.process.returncode}"
        error.add_note(f"QEMU {state} and has said: {self.stderr or 'nothing'}")

    @property
    def stderr(self) -> str:
        """All that QEMU has said so far."""
        return os.pread(self._said.fileno(), 1 << 20, 0).decode(errors="replace")

    def alive(self) -> bool:
        """Does QEMU run?"""
        return self.process.poll() is None

    def wait(self) -> int:
        """Wait until QEMU has ended; gives its exit code, minus the signal's number if one killed it."""
        return self.process.wait(self.seconds)

    def stop(self) -> None:
        """Pause the machine; its device is stopped once this returns."""
        self.qmp.execute("stop")

    def cont(self) -> None:
        """Let it run again."""
        self.qmp.execute("cont")

    def system_reset(self) -> None:
        """Reset the whole machine, PCI included, and wait until that is done."""
        self.qmp.forget_events()
        self.qmp.execute("system_reset")
        self.qmp.wait_for("RESET")

    def quit(self) -> int:
        """Let QEMU end in good order; gives its exit code."""
        self.qmp.execute("quit")
        return self.wait()

    def bring_up(self, features: int = 0) -> int:
        """Initialize the device up to DRIVER_OK with all its queues; gives the feature bits that both sides accepted.

        `features` is what the driver would like besides VERSION_1; event indexes it never accepts.
        """
        self._find_structures()
        self.reset()
        self._set_status(Status.ACKNOWLEDGE)
        self._set_status(Status.ACKNOWLEDGE | Status.DRIVER)
        accepted = self._negotiate(features)
        ready = Status.ACKNOWLEDGE | Status.DRIVER | Status.FEATURES_OK
        self._set_status(ready)
        if not self.status() & Status.FEATURES_OK:
            raise RuntimeError(f"the device refused the features {accepted:#x}")
        queues = self.qtest.readw(self._common + NUM_QUEUES)
        kind = PackedRing if accepted >> Feature.RING_PACKED & 1 else Ring
        self._rings = [self._enable_queue(index, kind) for index in range(queues)]
        self._set_status(ready | Status.DRIVER_OK)
        return accepted

    def reset(self) -> None:
        """Reset the device (status 0) and wait until it says that it is reset."""
        self._set_status(Status(0))
        deadline = time.monotonic() + self.seconds
        while self.status():
            if time.monotonic() > deadline:
                raise TimeoutError(f"the device is not reset after {self.seconds} s")

    def status(self) -> Status:
        """The device status field."""
        return Status(self.qtest.readb(self._common + DEVICE_STATUS))

    def _set_status(self, status: Status) -> None:
        self.qtest.writeb(self._common + DEVICE_STATUS, status)

    def _find_structures(self) -> None:
        self.pci.assign_bars()
        found = self.pci.structures()
        self._places = {each.cfg_type: each for each in reversed(found) if each.cfg_type != SHARED_MEMORY}
        self._windows = {each.id: each for each in found if each.cfg_type == SHARED_MEMORY}
        self._common = self.pci.address(self._places[COMMON])

    def _negotiate(self, wanted: int) -> int:
        offered = sum(self._feature_word(word) << 32 * word for word in range(2))
        accepted = offered & (wanted | 1 << Feature.VERSION_1) & ~NEVER_ACCEPTED
        for word in range(2):
            self.qtest.writel(self._common + DRIVER_FEATURE_SELECT, word)
            self.qtest.writel(self._common + DRIVER_FEATURE, accepted >> 32 * word & 0xFFFF_FFFF)
        return accepted

    def _feature_word(self, word: int) -> int:
        self.qtest.writel(self._common + DEVICE_FEATURE_SELECT, word)
        return self.qtest.readl(self._common + DEVICE_FEATURE)

    def _enable_queue(self, index: int, kind: type[Ring] | type[PackedRing]) -> Ring | PackedRing:
        start = FIRST_RING + index * RING_BYTES
        if start + RING_BYTES > RAM:
            raise ValueError(f"queue {index} does not fit into the {RAM >> 20} MiB of guest memory")
        self._select(index)
        ring = kind(self.qtest, start=start, end=start + RING_BYTES, size=self.qtest.readw(self._common + QUEUE_SIZE))
        self.qtest.writeq(self._common + QUEUE_DESC, ring.descriptors)
        self.qtest.writeq(self._common + QUEUE_DRIVER, ring.driver_area)
        self.qtest.writeq(self._common + QUEUE_DEVICE, ring.device_area)
        self.qtest.writew(self._common + QUEUE_ENABLE, 1)
        return ring

    def _select(self, index: int) -> None:
        self.qtest.writew(self._common + QUEUE_SELECT, index)

    def exchange(self, queue: int, request: bytes, reply_size: int) -> bytes:
        """Put one request through a queue; gives what the device wrote."""
        return self.collect(queue, self.submit(queue, request, reply_size))

    def submit(self, queue: int, request: bytes, reply_size: int) -> int:
        """Make a request available and notify the device; gives what `collect` wants to know."""
        head = self._rings[queue].submit(request, reply_size)
        self._select(queue)
        notify = self._places[NOTIFY]
        place = self.qtest.readw(self._common + QUEUE_NOTIFY_OFF) * notify.notify_multiplier
        self.qtest.writew(self.pci.address(notify) + place, queue)
        return head

    def collect(self, queue: int, head: int) -> bytes:
        """Wait until the device has used a submitted request; gives what it wrote."""
        return self._rings[queue].collect(head, self.seconds)

    def wait_interrupt(self) -> int:
        """Wait for an interrupt; gives and clears the ISR status: 1 for a used buffer, 2 for configuration."""
        deadline = time.monotonic() + self.seconds
        while not (status := self.qtest.readb(self.pci.address(self._places[ISR]))):
            if time.monotonic() > deadline:
                raise TimeoutError(f"no interrupt within {self.seconds} s")
        return status

    def read_config(self, offset: int, length: int) -> bytes:
        """Read the device's configuration space, byte by byte as drivers may."""
        start = self.pci.address(self._places[DEVICE]) + offset
        return bytes(self.qtest.readb(place) for place in range(start, start + length))

    @property
    def shm_sizes(self) -> dict[int, int]:
        """The shared memory regions that the device has: shmid -> bytes."""
        return {shmid: window.length for shmid, window in self._windows.items()}

    def shm_address(self, shmid: int) -> int:
        """The guest-physical address of a shared memory region."""
        return self.pci.address(self._windows[shmid])

    def read_shm(self, shmid: int, offset: int, length: int) -> bytes:
        """Read a shared memory region as the guest does; what is not mapped reads as zeros."""
        return self.qtest.memread(self._shm_place(shmid, offset, length), length)

    def write_shm(self, shmid: int, offset: int, data: bytes) -> None:
        """Write to a shared memory region as the guest does."""
        self.qtest.memwrite(self._shm_place(shmid, offset, len(data)), data)

    def _shm_place(self, shmid: int, offset: int, length: int) -> int:
        if not 0 <= offset <= offset + length <= self._windows[shmid].length:
            raise ValueError(f"{offset:#x} + {length:#x} passes region {shmid}'s end {self._windows[shmid].length:#x}")
        return self.shm_address(shmid) + offset


def _pair(opened: ExitStack) -> tuple[socket.socket, socket.socket]:
    ours, theirs = socket.socketpair()
    return opened.enter_context(ours), opened.enter_context(theirs)


def usual_arguments(path: str, device: str, memory: str = "memory-backend-memfd") -> list[str]:
    """QEMU's arguments for a machine whose RAM is of the object `memory`, with one device."""
    return [
        *("-display", "none", "-nodefaults", "-no-user-config"),
        *("-m", f"{RAM >> 20}M", "-machine", "q35,memory-backend=mem"),
        *("-object", f"{memory},id=mem,size={RAM >> 20}M,share=on"),
        *("-chardev", f"socket,id=c0,path={path.replace(',', ',,')}", "-device", f"{device},chardev=c0"),
    ]
