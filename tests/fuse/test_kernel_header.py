"""Structs and numbers of FUSE are the kernel's, by its own header and a C compiler."""

from __future__ import annotations

import re
from pathlib import Path
from typing import NamedTuple

import pytest

from vhostuser.fuse import numbers, structs
from vhostuser.fuse.numbers import Opcode
from vhostuser.protocol.layout import Payload

from . import kernel_header as kernel

STRUCTS = {
    cls.__name__: cls
    for cls in vars(structs).values()
    if isinstance(cls, type) and issubclass(cls, Payload) and cls is not Payload
}
NESTED = {
    "LkIn": {name: f"lk.{name}" for name in ("start", "end", "type", "pid")},
    "Statx": {f"{which}time{suffix}": f"{which}time.tv_{suffix or 'sec'}" for which in "abcm" for suffix in ("", "nsec")},
}
"""Fields that the kernel has in a struct within the struct."""
FLAGS = {
    "InitFlag": "FUSE_",
    "Fattr": "FATTR_",
    "FopenFlag": "FOPEN_",
    "AttrFlag": "FUSE_ATTR_",
    "GetattrFlag": "FUSE_GETATTR_",
    "WriteFlag": "FUSE_WRITE_",
    "LockFlag": "FUSE_LK_",
    "FsyncFlag": "FUSE_FSYNC_",
    "OpenFlag": "FUSE_OPEN_",
    "SetxattrFlag": "FUSE_SETXATTR_",
    "MappingFlag": "FUSE_SETUPMAPPING_FLAG_",
}
CONSTANTS = {
    "FUSE_KERNEL_VERSION": numbers.VERSION[0],
    "FUSE_ROOT_ID": numbers.ROOT_ID,
    "FUSE_MAX_NR_SECCTX": numbers.Extension.MAX_NR_SECCTX,
    "FUSE_EXT_GROUPS": numbers.Extension.GROUPS,
}


NOT_OURS = {"Dirent": {"name"}}
"""What the kernel declares to stand for the bytes behind a struct."""


class Header(NamedTuple):
    """The header, and whether it is the fetched one, which has all that is spoken here."""

    folder: Path
    text: str
    whole: bool


@pytest.fixture(scope="module")
def header() -> Header:
    folder = kernel.include_folder()
    return Header(folder, (folder / kernel.NAME).read_text(), folder != kernel.SYSTEM)


def kernel_name(name: str) -> str:
    return re.sub(r"(?<!^)(?=[A-Z])", "_", name).lower()


def there(header: Header, names: dict[str, int]) -> list[str]:
    """The names that the header has: all, if it is as new as we are."""
    found = kernel.known(header.text, names)
    assert found == list(names) or not header.whole
    assert found
    return found


def test_the_header_is_as_new_as_what_is_spoken_here(header: Header, tmp_path: Path) -> None:
    [minor] = kernel.evaluate(header.folder, tmp_path, ["FUSE_KERNEL_MINOR_VERSION"])
    assert minor >= (numbers.VERSION[1] if header.whole else 31)


def test_every_struct_has_the_kernels_size_and_offsets(header: Header, tmp_path: Path) -> None:
    known = kernel.structs(header.text)
    wanted = {name: cls for name, cls in STRUCTS.items() if kernel_name(name) in known}
    assert wanted.keys() == STRUCTS.keys() or not header.whole
    assert len(wanted) > 35
    expressions, expected = [], []
    for name, cls in wanted.items():
        struct = f"struct fuse_{kernel_name(name)}"
        expressions.append(f"sizeof({struct})")
        expected.append(cls.STRUCT.size)
        for field in cls.FIELDS:
            path = NESTED.get(name, {}).get(field.name, field.name)
            if path.partition(".")[0] not in known[kernel_name(name)] and not header.whole:
                continue
            expressions += [f"offsetof({struct}, {path})", f"sizeof((({struct} *)0)->{path})"]
            expected += [field.offset, field.size]
    found = kernel.evaluate(header.folder, tmp_path, expressions)
    wrong = [row for row in zip(expressions, found, expected, strict=True) if row[1] != row[2]]
    assert wrong == []


@pytest.mark.parametrize("name", STRUCTS)
def test_what_is_no_field_here_says_nothing_there(header: Header, name: str) -> None:
    fields = kernel.structs(header.text).get(kernel_name(name))
    if fields is None:
        assert not header.whole
        return
    nested = {path.partition(".")[0] for path in NESTED.get(name, {}).values()}
    left = set(fields) - nested - {field.name for field in STRUCTS[name].FIELDS}
    assert {each for each in left if not kernel.UNNAMED.fullmatch(each)} <= NOT_OURS.get(name, set())


def test_every_request_has_the_kernels_number(header: Header) -> None:
    known = kernel.opcodes(header.text)
    ours = {opcode.name: opcode.value for opcode in Opcode}
    assert {name: value for name, value in known.items() if value <= max(Opcode)}.items() <= ours.items()
    assert ours.keys() <= known.keys() or not header.whole


@pytest.mark.parametrize("group", FLAGS)
def test_every_flag_has_the_kernels_value(header: Header, tmp_path: Path, group: str) -> None:
    ours = {FLAGS[group] + name: value for name, value in vars(getattr(numbers, group)).items() if name.isupper()}
    names = there(header, ours)
    found = kernel.evaluate(header.folder, tmp_path, names)
    assert dict(zip(names, found, strict=True)) == {name: ours[name] for name in names}


def test_every_other_number_is_the_kernels(header: Header, tmp_path: Path) -> None:
    names = there(header, CONSTANTS)
    assert kernel.evaluate(header.folder, tmp_path, names) == [CONSTANTS[name] for name in names]


def test_a_fetched_tree_without_the_header_is_an_error(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("VHOSTUSER_CACHE", str(tmp_path))
    assert kernel.include_folder() == kernel.SYSTEM
    (tmp_path / "vm").mkdir()
    with pytest.raises(FileNotFoundError, match="make vm"):
        kernel.include_folder()
