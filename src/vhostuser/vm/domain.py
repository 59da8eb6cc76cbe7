"""libvirt's XML for our back-ends in a user's own VM."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Final
from xml.etree import ElementTree as Tree

from .machine import TAG, Attachment, Kind

NAMESPACE: Final = "http://libvirt.org/schemas/domain/qemu/1.0"
_QEMU: Final = f"{{{NAMESPACE}}}"
Tree.register_namespace("qemu", NAMESPACE)


def domain(attached: Iterable[Attachment]) -> str:
    """What a domain needs to have: shared memory, and the devices.

    libvirt has no element for a device with a shared memory region: QEMU's own words stand for those.
    """
    attached = list(attached)
    root = Tree.Element("domain", type="kvm")
    backing = Tree.SubElement(root, "memoryBacking")
    Tree.SubElement(backing, "source", type="memfd")
    Tree.SubElement(backing, "access", mode="shared")
    if plain := [each for each in attached if not has_region(each)]:
        devices = Tree.SubElement(root, "devices")
        for each in plain:
            _disk(devices, each) if each.kind is Kind.BLK else _filesystem(devices, each)
    if regions := [each for each in attached if has_region(each)]:
        command = Tree.SubElement(root, f"{_QEMU}commandline")
        for word in (word for each in regions for word in each.words()):
            Tree.SubElement(command, f"{_QEMU}arg", value=word)
    Tree.indent(root)
    return Tree.tostring(root, encoding="unicode")


def has_region(each: Attachment) -> bool:
    """The device is QEMU's generic one."""
    return each.kind is Kind.PMEM or (each.kind is Kind.SHARE and each.dax)


def _filesystem(devices: Tree.Element, each: Attachment) -> None:
    found = Tree.SubElement(devices, "filesystem", type="mount")
    Tree.SubElement(found, "driver", type="virtiofs", queue="1024")
    Tree.SubElement(found, "source", socket=each.socket)
    Tree.SubElement(found, "target", dir=TAG)


def _disk(devices: Tree.Element, each: Attachment) -> None:
    found = Tree.SubElement(devices, "disk", type="vhostuser", device="disk")
    Tree.SubElement(found, "driver", name="qemu", type="raw")
    source = Tree.SubElement(found, "source", type="unix", path=each.socket)
    Tree.SubElement(source, "reconnect", enabled="yes", timeout="10")
    Tree.SubElement(found, "target", dev="vda", bus="virtio")
