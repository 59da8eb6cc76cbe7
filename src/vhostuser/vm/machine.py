"""QEMU's words for a machine whose memory is shared, and for our devices in it."""

from __future__ import annotations

from dataclasses import dataclass
from enum import Enum
from typing import Final

MIB: Final = 1 << 20
TAG: Final = "myfs"
"""What the guest mounts."""
_CPUS: Final = {"tcg": "max", "kvm": "host"}


class Kind(Enum):
    """What a back-end is to the guest, as options and QEMU's ids are named."""

    SHARE = "share"
    PMEM = "pmem"
    BLK = "blk"


@dataclass(frozen=True, slots=True)
class Machine:
    """A machine by its size and its accelerator."""

    memory: int = 512 * MIB
    cpus: int = 1
    accel: str = "tcg"

    def words(self) -> list[str]:
        """Memory that a back-end can map, above all."""
        backend = f"memory-backend-memfd,id=mem,size={self.memory},share=on"
        accel = "tcg,thread=multi" if self.accel == "tcg" else self.accel
        return [
            *("-machine", "q35,memory-backend=mem", "-accel", accel, "-cpu", _CPUS[self.accel], "-smp", str(self.cpus)),
            *("-m", f"{self.memory // MIB}M", "-object", backend),
        ]


@dataclass(frozen=True, slots=True)
class Attachment:
    """A back-end that listens on `socket`. Only QEMU's generic device has shared memory regions, which `dax` is by."""

    kind: Kind
    socket: str
    dax: bool = True
    queues: int = 1

    @property
    def device(self) -> str:
        """QEMU's device for it, without its character device."""
        if self.kind is Kind.BLK:
            return "vhost-user-blk-pci"
        if self.kind is Kind.PMEM:
            return "vhost-user-test-device-pci,virtio-id=27,num_vqs=1,vq_size=128,config_size=16"
        if self.dax:
            return f"vhost-user-test-device-pci,virtio-id=26,num_vqs={self.queues + 1},vq_size=128,config_size=40"
        return f"vhost-user-fs-pci,tag={TAG},num-request-queues={self.queues},queue-size=128"

    @property
    def id(self) -> str:
        """Of its character device."""
        return f"vhu-{self.kind.value}"

    def words(self) -> list[str]:
        """The device and the way to its back-end."""
        chardev = f"socket,id={self.id},path={escaped(self.socket)}"
        return ["-chardev", chardev, "-device", f"{self.device},chardev={self.id}"]


def escaped(text: str) -> str:
    """A text as a value in QEMU's options, in which a comma ends a value."""
    return text.replace(",", ",,")
