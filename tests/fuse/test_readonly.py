"""A read-only share: whatever would change it is EROFS and never reaches the share."""

from __future__ import annotations

import errno
import os
from collections.abc import Iterator

import pytest

from vhostuser.devices.fs.admission import WRITERS
from vhostuser.devices.fs.options import ShareOptions
from vhostuser.fuse import structs as s
from vhostuser.fuse.numbers import Opcode
from vhostuser.fuse.rules import RULES

from .standin import Answer, Guest, StandIn, body_of, guest_of

REFUSED = Answer(errno.EROFS, b"")
READERS = {
    *(Opcode.LOOKUP, Opcode.FORGET, Opcode.GETATTR, Opcode.READLINK, Opcode.OPEN, Opcode.READ, Opcode.STATFS),
    *(Opcode.RELEASE, Opcode.FSYNC, Opcode.GETXATTR, Opcode.LISTXATTR, Opcode.FLUSH, Opcode.INIT, Opcode.OPENDIR),
    *(Opcode.READDIR, Opcode.RELEASEDIR, Opcode.FSYNCDIR, Opcode.GETLK, Opcode.SETLK, Opcode.SETLKW, Opcode.ACCESS),
    *(Opcode.INTERRUPT, Opcode.DESTROY, Opcode.BATCH_FORGET, Opcode.READDIRPLUS, Opcode.LSEEK, Opcode.SETUPMAPPING),
    *(Opcode.REMOVEMAPPING, Opcode.SYNCFS, Opcode.STATX),
}
"""The requests that change nothing, or only if their arguments say so."""


@pytest.fixture
def reader(share: StandIn) -> Iterator[Guest]:
    with guest_of(share, ShareOptions(readonly=True)) as guest:
        guest.init()
        yield guest


def test_every_request_either_writes_or_reads() -> None:
    assert set(RULES) == WRITERS | READERS
    assert not WRITERS & READERS


def test_no_writer_reaches_the_share(reader: Guest, share: StandIn) -> None:
    assert {reader.ask(opcode, body_of(opcode)) for opcode in WRITERS} == {REFUSED}
    assert share.calls == []


def test_readers_do(reader: Guest, share: StandIn) -> None:
    opcodes = [opcode for opcode in READERS if RULES[opcode].replies and hasattr(StandIn(), opcode.name.lower())]
    own = {Opcode.INIT, Opcode.DESTROY, Opcode.SETUPMAPPING, Opcode.REMOVEMAPPING}
    for opcode in sorted(set(opcodes) - own):
        assert reader.ask(opcode, body_of(opcode)).error == 0
    assert len(share.calls) == len(set(opcodes) - own)


@pytest.mark.parametrize("flags", [os.O_WRONLY, os.O_RDWR, os.O_RDONLY | os.O_TRUNC, os.O_WRONLY | os.O_APPEND])
def test_a_file_is_opened_to_be_read(reader: Guest, share: StandIn, flags: int) -> None:
    assert reader.ask(Opcode.OPEN, s.OpenIn(flags).pack()) == REFUSED
    assert reader.ask(Opcode.OPEN, s.OpenIn(os.O_RDONLY | os.O_NONBLOCK).pack()).error == 0
    assert share.names == ["open"]


@pytest.mark.parametrize("mask", [os.W_OK, os.W_OK | os.R_OK, 7])
def test_nobody_has_write_access(reader: Guest, share: StandIn, mask: int) -> None:
    assert reader.ask(Opcode.ACCESS, s.AccessIn(mask).pack()) == REFUSED
    assert reader.ask(Opcode.ACCESS, s.AccessIn(os.R_OK | os.X_OK).pack()).error == 0
    assert share.names == ["access"]


def test_a_share_that_is_not_read_only_takes_writers(guest: Guest, share: StandIn) -> None:
    for opcode in sorted(WRITERS):
        assert guest.ask(opcode, body_of(opcode)).error == 0
    assert len(share.calls) == len(WRITERS)
