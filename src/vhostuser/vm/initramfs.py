"""A guest's root file system, made without cpio: busybox, kernel modules with all they depend on, and a shell on ttyS0."""

from __future__ import annotations

import gzip
import lzma
import re
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Final

from . import tree

_FILE, _FOLDER, _DEVICE = 0o100000, 0o040000, 0o020000
_ALIGN: Final = 4
_FOLDERS: Final = ("bin", "dev", "proc", "sys", "tmp", "mnt", "root", "run", "modules")
_BEGIN: Final = """\
#!/bin/busybox sh
/bin/busybox --install -s /bin
mount -t devtmpfs dev /dev
mount -t proc proc /proc
mount -t sysfs sys /sys
for module in /modules/*.ko; do insmod $module || echo "$module does not load"; done
"""
TYPED: Final = """\
stty -F /dev/ttyS0 raw -echo
echo the guest is ready
dd if=/dev/ttyS0 bs=4096 2>/dev/null | sh >/dev/ttyS0 2>&1
"""


def initramfs(modules: Iterable[str], *, script: str = TYPED, files: Mapping[str, Path] | None = None) -> bytes:
    """The archive, gzipped. `script` is what the guest does once its modules are loaded; `files` are more of its files.

    The usual script is a shell that takes lines on the first serial port, and says so when it does.
    """
    more = dict(files or {})
    folders = [*_FOLDERS, *(str(parent) for name in more for parent in reversed(Path(name).parents) if parent.name)]
    parts = [_entry(name, _FOLDER | 0o755) for name in dict.fromkeys(folders)]
    parts += [_entry("dev/console", _DEVICE | 0o600, device=(5, 1)), _entry("dev/null", _DEVICE | 0o666, device=(1, 3))]
    parts += [
        _entry("bin/busybox", _FILE | 0o755, tree.busybox().read_bytes()),
        _entry("init", _FILE | 0o755, (_BEGIN + script).encode()),
    ]
    parts += [_entry(name, _FILE | 0o755, path.read_bytes()) for name, path in more.items()]
    for at, (name, content) in enumerate(with_dependencies(modules).items()):
        parts.append(_entry(f"modules/{at:02}-{name}.ko", _FILE | 0o644, content))
    return gzip.compress(b"".join([*parts, _entry("TRAILER!!!", 0)]), compresslevel=1)


def with_dependencies(wanted: Iterable[str]) -> dict[str, bytes]:
    """Modules by name, unpacked, in the order in which they load."""
    known, found = tree.modules(), dict[str, bytes]()

    def take(name: str) -> None:
        if name in found:
            return
        if name not in known:
            raise LookupError(f"the fetched kernel has no module {name}")
        content = lzma.decompress(known[name].read_bytes())
        needed = re.search(rb"\0depends=([\w,-]*)\0", content)
        for other in needed[1].decode().replace("-", "_").split(",") if needed else ():
            if other:
                take(other)
        found[name] = content

    for name in wanted:
        take(name)
    return found


def _entry(name: str, mode: int, content: bytes = b"", device: tuple[int, int] = (0, 0)) -> bytes:
    """One file in the "new ASCII" format: a header of hexadecimal numbers, the name, the content, each padded."""
    path = name.encode() + b"\0"
    numbers = (0, mode, 0, 0, 1, 0, len(content), 0, 0, *device, len(path), 0)
    head = b"070701" + b"".join(b"%08x" % number for number in numbers) + path
    return _padded(head) + _padded(content)


def _padded(data: bytes) -> bytes:
    return data + bytes(-len(data) % _ALIGN)
