"""Requests of disks and shared directories in words."""

from __future__ import annotations

import errno
import struct

import pytest

from vhostuser.fuse import structs as s
from vhostuser.fuse.numbers import Opcode
from vhostuser.fuse.rules import IN_HEADER_SIZE, RULES
from vhostuser.trace.event import START, Buffer, Offered, Used
from vhostuser.trace.pairing import Kinds
from vhostuser.trace.requests import BLK, FS, KINDS, RAW, answer_words, guess_kind, request_words
from vhostuser.virtio.block import HEADER, RANGE, SECTOR, BlockRequest


def offered(start: bytes, *, readable: int | None = None, writable: int = 0) -> Offered:
    sizes = ((len(start) if readable is None else readable, False), (writable, True))
    buffers = tuple(Buffer(0, size, device) for size, device in sizes if size)
    return Offered(0, 0, 0, 0, buffers, start[:START])


def used(written: int, start: bytes = b"", end: bytes = b"") -> Used:
    return Used(0, 0, 0, 0, written, start, end)


def blk(kind: int, sector: int = 0, rest: bytes = b"", *, writable: int = 1) -> Offered:
    return offered(HEADER.pack(kind, 0, sector) + rest, writable=writable)


def fuse(opcode: int, body: bytes = b"", *, extra: int = 0, nodeid: int = 1) -> Offered:
    header = s.InHeader(IN_HEADER_SIZE + len(body) + extra, opcode, 7, nodeid, 0, 0, 0, 0)
    return offered(header.pack() + body, writable=144)


@pytest.mark.parametrize(
    ("request_", "words"),
    [
        (blk(BlockRequest.IN, 8, writable=4097), "IN sector=8 bytes=4096"),
        (blk(BlockRequest.OUT, 9, bytes(512)), "OUT sector=9 bytes=512"),
        (blk(BlockRequest.FLUSH), "FLUSH"),
        (blk(BlockRequest.GET_ID, writable=21), "GET_ID bytes=20"),
        (blk(BlockRequest.DISCARD, 0, RANGE.pack(16, 8, 0)), "DISCARD sectors=16+8"),
        (blk(BlockRequest.WRITE_ZEROES, 0, RANGE.pack(1, 2, 1) * 2), "WRITE_ZEROES sectors=1+2 unmap,1+2 unmap"),
        (blk(BlockRequest.DISCARD, 0, RANGE.pack(1, 2, 0) * 9), "DISCARD sectors=" + ",".join(["1+2"] * 7) + " and 2 more"),
        (blk(77, 1, writable=2), "TYPE_77 bytes=1"),
        (blk(BlockRequest.IN, writable=0), "IN sector=0 bytes=0"),
        (offered(b"abc"), "3 bytes to read, 0 to write 616263 (no request of a disk)"),
        (offered(b"", readable=16, writable=513), "16 bytes to read, 513 to write (not seen)"),
    ],
)
def test_a_disks_requests(request_: Offered, words: str) -> None:
    assert request_words(request_, BLK) == words


@pytest.mark.parametrize(
    ("answer", "words"),
    [
        (used(4097, b"x", b"\0"), "OK 4096 bytes"),
        (used(1, b"\0", b"\0"), "OK"),
        (used(1, b"\1", b"\1"), "IOERR"),
        (used(1, b"\2", b"\2"), "UNSUPP"),
        (used(1, b"\2", b"\xee"), "status 238"),
        (used(0), "0 bytes, status unknown"),
    ],
)
def test_a_disks_answers(answer: Used, words: str) -> None:
    assert answer_words(None, answer, BLK) == words


@pytest.mark.parametrize(
    ("request_", "words"),
    [
        (fuse(Opcode.LOOKUP, b"file.txt\0"), 'LOOKUP unique=7 nodeid=1 "file.txt"'),
        (
            fuse(Opcode.READ, s.ReadIn(3, 0x1_0000_0000, 4096, 0, 0, 0).pack(), nodeid=2),
            "READ unique=7 nodeid=2 fh=3 offset=0x100000000 size=4096",
        ),
        (
            fuse(Opcode.SETUPMAPPING, s.SetupmappingIn(1, 0, 2 << 20, 1, 4 << 20).pack()),
            "SETUPMAPPING unique=7 nodeid=1 fh=1 len=2097152 flags=1 moffset=4194304",
        ),
        (fuse(Opcode.RENAME2, s.Rename2In(5, 1).pack() + b"a\0b\0"), 'RENAME2 unique=7 nodeid=1 newdir=5 flags=1 "a" "b"'),
        (fuse(Opcode.LOOKUP, b"\x1b[31mred\n\0"), 'LOOKUP unique=7 nodeid=1 "\\x1b[31mred\\n"'),
        (fuse(Opcode.LOOKUP, b"n" * 200 + b"\0"), f'LOOKUP unique=7 nodeid=1 "{"n" * 64}"......'),
        (fuse(Opcode.LOOKUP, b"\xff\0"), 'LOOKUP unique=7 nodeid=1 "\\xff"'),
        (fuse(Opcode.READ, b"short"), "READ unique=7 nodeid=1 (too short)"),
        (fuse(999), "OPCODE_999 unique=7 nodeid=1"),
        (fuse(Opcode.STATFS, extra=1), "STATFS unique=7 nodeid=1 (len 41, but 40 bytes)"),
        (offered(b"x" * 8), "8 bytes to read, 0 to write 7878787878787878 (no request of FUSE)"),
    ],
)
def test_a_shares_requests(request_: Offered, words: str) -> None:
    assert request_words(request_, FS) == words


@pytest.mark.parametrize(
    ("request_", "answer", "words"),
    [
        (fuse(Opcode.LOOKUP, b"a\0"), s.OutHeader(16, -errno.ENOENT, 7).pack(), "ENOENT"),
        (fuse(Opcode.UNLINK, b"a\0"), s.OutHeader(16, 0, 7).pack(), "OK 0 bytes"),
        (fuse(Opcode.WRITE), s.OutHeader(24, 0, 7).pack() + s.WriteOut(4096).pack(), "OK 8 bytes size=4096"),
        (fuse(Opcode.OPEN), s.OutHeader(32, 0, 7).pack() + s.OpenOut(9, 2, 0).pack(), "OK 16 bytes fh=9 open_flags=2"),
        (fuse(Opcode.READ), s.OutHeader(20, 0, 7).pack() + b"data", "OK 4 bytes"),
        (fuse(Opcode.UNLINK), s.OutHeader(16, -4000, 7).pack(), "error -4000"),
        (fuse(Opcode.UNLINK), s.OutHeader(20, 0, 7).pack(), "OK 4 bytes (len 20, but 16 bytes)"),
        (fuse(Opcode.FORGET), b"", "no answer"),
        (fuse(Opcode.UNLINK), b"", "0 bytes, answer unknown"),
        (None, s.OutHeader(16, 0, 7).pack(), "OK 0 bytes"),
    ],
)
def test_a_shares_answers(request_: Offered | None, answer: bytes, words: str) -> None:
    assert answer_words(request_, used(len(answer), answer), FS) == words


def test_what_nobody_knows_is_told_by_its_length() -> None:
    asked = offered(bytes(range(40)), writable=5)
    assert request_words(asked, RAW) == f"40 bytes to read, 5 to write {bytes(range(16)).hex()}..."
    assert answer_words(asked, used(2, b"abcde", b"e"), RAW) == "2 bytes 6162"
    assert answer_words(asked, used(0), RAW) == "0 bytes"


@pytest.mark.parametrize(
    ("request_", "kind"),
    [
        (blk(BlockRequest.IN, 8, writable=4097), BLK),
        (blk(BlockRequest.OUT, 8, bytes(SECTOR)), BLK),
        (blk(BlockRequest.FLUSH), BLK),
        (blk(BlockRequest.GET_ID, writable=21), BLK),
        (blk(BlockRequest.DISCARD, 0, RANGE.pack(16, 8, 0)), BLK),
        (blk(BlockRequest.DISCARD, 0, b"12345"), RAW),
        (blk(BlockRequest.IN, 8, writable=100), RAW),
        (blk(BlockRequest.IN, 8, writable=0), RAW),
        (blk(5, 8), RAW),
        (fuse(Opcode.INIT, s.InitIn(7, 45).pack()), FS),
        (fuse(Opcode.FORGET, s.ForgetIn(1).pack()), FS),
        (fuse(999), RAW),
        (fuse(Opcode.STATFS, extra=1), RAW),
        (offered(b""), RAW),
        (offered(bytes(100), writable=100), RAW),
        (offered(b"", writable=100), RAW),
    ],
)
def test_a_kind_is_guessed_only_from_what_could_be_nothing_else(request_: Offered, kind: str) -> None:
    assert guess_kind(request_) == kind


def test_a_kind_stays_what_it_was_taken_for() -> None:
    kinds = Kinds()
    assert kinds.of(offered(b"ping")) == RAW
    assert kinds.of(blk(BlockRequest.FLUSH)) == BLK
    assert kinds.of(offered(b"ping")) == BLK
    assert kinds.of(used(1)) == BLK
    assert Kinds(RAW).of(blk(BlockRequest.FLUSH)) == RAW


@pytest.mark.parametrize("kind", KINDS)
def test_no_bytes_are_too_few_or_too_strange(kind: str) -> None:
    """Any beginning of any request is said in words that are one printable line."""
    for opcode in [*Opcode, 0, 1 << 31]:
        rule = RULES.get(opcode) if isinstance(opcode, Opcode) else None
        size = rule.arguments.STRUCT.size if rule and rule.arguments else 0
        whole = s.InHeader(IN_HEADER_SIZE + size + 8, opcode, 1, 1).pack() + b"\xff" * size + b"\x1bname\n\0\0"
        for end in range(0, len(whole) + 1, 3):
            asked = offered(whole[:end], writable=17)
            said = request_words(asked, kind), answer_words(asked, used(end, whole[:end], whole[end - 1 : end]), kind)
            assert all(text.isprintable() for text in said)
    assert request_words(offered(struct.pack("<IIQ", 2**32 - 1, 0, 2**64 - 1)), kind).isprintable()
