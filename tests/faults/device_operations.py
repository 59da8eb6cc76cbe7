"""Operations of devices whose host has no room, no more files, or a disk that fails: their guest is told, and goes on."""

from __future__ import annotations

import os
import tempfile
from abc import abstractmethod
from collections.abc import Hashable
from pathlib import Path
from typing import Final

from vhostuser.device import Device
from vhostuser.devices.blk import BlockDevice
from vhostuser.devices.disk import Disk
from vhostuser.devices.fs.device import FsDevice
from vhostuser.devices.fs.options import Dax, Handles, ShareOptions
from vhostuser.devices.fs.share import share_directory
from vhostuser.drivers.blk import BlockDriver
from vhostuser.drivers.fs import FsDriver
from vhostuser.drivers.fuse import FuseSession
from vhostuser.transport.fds import OwnedFd

from .operations import OPERATIONS, operation
from .shim import Whose
from .worlds import FrontWorld

DATA: Final = b"sector." * 1024
SIZE: Final = 4096
OF_DISKS: Final = ("pread", "pwrite", "fdatasync", "fallocate")
OF_FILES: Final = ("open", "dup", "fstat", "ftruncate", "pread", "pwrite", "copy", "close", "mmap", "mremap", "sendmmsg")


def _written(path: Path, start: int, data: bytes) -> None:
    """The host's file has what was said to be written."""
    with path.open("rb") as file:
        file.seek(start)
        if file.read(len(data)) != data:
            raise AssertionError(f"{path.name} does not have what was written")


class DeviceWorld(FrontWorld):
    """A device under test, with a file of the host's behind it."""

    def __init__(self) -> None:
        self.temporary = self._new_folder()
        super().__init__(self.make(), Whose.OTHERS)

    def _new_folder(self) -> Path:
        self._folder = tempfile.TemporaryDirectory(prefix="vhu-")
        return Path(self._folder.name)

    @abstractmethod
    def make(self) -> Device:
        """The device, with what it needs in `temporary`."""

    def tables(self) -> Hashable:
        return ()

    def problems(self) -> list[str]:
        return []

    def close(self) -> None:
        super().close()
        self._folder.cleanup()


class DiskWorld(DeviceWorld):
    """A disk of a page."""

    native = True
    driver: BlockDriver

    def make(self) -> BlockDevice:
        self.file_path = self.temporary / "disk"
        self.file_path.write_bytes(bytes(4 * SIZE))
        return BlockDevice(Disk(self.file_path), native=self.native)

    def drive(self) -> None:
        self.serve()
        self.connect()
        self.frontend.share_memory(1 << 20)
        self.driver = BlockDriver(self.frontend)
        self.driver.read(0, 1)

    def close(self) -> None:
        super().close()
        if isinstance(self.device, BlockDevice):
            self.device.close()


class InterpretedDisk(DiskWorld):
    """The same, served by Python in any case."""

    native = False


def disk(world: DiskWorld) -> None:
    world.drive()


def _write(world: DiskWorld) -> None:
    """What was said to be written is there."""
    world.driver.write(8, DATA[:SIZE])
    _written(world.file_path, SIZE, DATA[:SIZE])


def _read(world: DiskWorld) -> None:
    if world.driver.read(0, 8) != bytes(SIZE):
        raise AssertionError("what was read is not what is there")


@operation("disk", DiskWorld, disk, calls=OF_DISKS)
def blk_write(world: DiskWorld) -> None:
    _write(world)


@operation("disk", InterpretedDisk, disk, calls=OF_DISKS)
def blk_write_in_python(world: DiskWorld) -> None:
    _write(world)


@operation("disk", DiskWorld, disk, calls=OF_DISKS)
def blk_read(world: DiskWorld) -> None:
    _read(world)


@operation("disk", InterpretedDisk, disk, calls=OF_DISKS)
def blk_read_in_python(world: DiskWorld) -> None:
    _read(world)


@operation("disk", DiskWorld, disk, calls=OF_DISKS, lasting=True)
def blk_flush(world: DiskWorld) -> None:
    """After one that failed all others do: what was written before may be lost."""
    world.driver.flush()


@operation("disk", DiskWorld, disk, calls=OF_DISKS)
def blk_write_zeroes(world: DiskWorld) -> None:
    world.driver.write_zeroes(0, 8)


class ShareWorld(DeviceWorld):
    """A directory with a file of ten pages."""

    dax = Dax.DIRECT
    session: FuseSession
    files: FsDriver

    def make(self) -> FsDevice:
        self.file_path = self.temporary / "shared" / "file"
        self.file_path.parent.mkdir()
        self.file_path.write_bytes(DATA[:SIZE] * 10)
        root = OwnedFd(os.open(self.file_path.parent, os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC))
        options = ShareOptions(
            tag="share", dax=self.dax, dax_window=1 << 22, dax_write=True, inode_file_handles=Handles.NEVER
        )
        return share_directory(root, options)

    def drive(self) -> None:
        self.serve()
        self.connect()
        self.frontend.share_memory(1 << 23)
        self.session = FuseSession(self.frontend)
        self.files = FsDriver(self.session)
        self.files.stat("file")

    def close(self) -> None:
        super().close()
        if isinstance(self.device, FsDevice):
            self.device.close()


class CopyingShare(ShareWorld):
    """The same with a window of copies."""

    dax = Dax.COPY


def shared(world: ShareWorld) -> None:
    world.drive()


def _map(world: ShareWorld) -> None:
    """SETUPMAPPING, a look, and REMOVEMAPPING."""
    if b"".join(world.files.read_mapped("file")) != DATA[:SIZE] * 10:
        raise AssertionError("the window does not show the file")


@operation("share", ShareWorld, shared, calls=OF_FILES)
def fuse_map_directly(world: ShareWorld) -> None:
    _map(world)


@operation("share", CopyingShare, shared, calls=OF_FILES)
def fuse_map_a_copy(world: ShareWorld) -> None:
    _map(world)


def written(world: ShareWorld) -> None:
    """The thread that makes files has the fds that it keeps spare."""
    world.drive()
    world.files.write("before", [DATA])


@operation("share", CopyingShare, written, calls=OF_FILES)
def fuse_write(world: ShareWorld) -> None:
    """What was said to be written is there, and nothing stays open."""
    world.files.write("new", [DATA])
    _written(world.file_path.with_name("new"), 0, DATA)


@operation("share", CopyingShare, shared, calls=OF_FILES, atomic=False)
def fuse_store(world: ShareWorld) -> None:
    """What is stored into the window is in the file once it is written back, or the guest is told."""
    with world.files._node("file") as nodeid, world.files.mapped(nodeid, 0, 0, writable=True):
        world.files.window().write(0, b"stored")
    _written(world.file_path, 0, b"stored")


__all__ = ["OPERATIONS"]
