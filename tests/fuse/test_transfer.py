"""Bytes between a file and a chain, whatever the system calls do at a time."""

from __future__ import annotations

import errno
import os
from collections.abc import Sequence

import pytest

from vhostuser.devices.fs.transfer import WRITE_DATA, ChainRoom, ChainSource
from vhostuser.devices.vectors import MOST_BUFFERS
from vhostuser.fuse.rules import OUT_HEADER_SIZE
from vhostuser.virtio.chain import DescriptorChain

from .standin import StandIn


def views(memory: bytearray, sizes: Sequence[int]) -> list[memoryview]:
    whole, found = memoryview(memory), []
    for size in sizes:
        found.append(whole[:size])
        whole = whole[size:]
    return found


MANY = [OUT_HEADER_SIZE, *[3] * (2 * MOST_BUFFERS + 5)]


@pytest.mark.parametrize("sizes", [[16, 100], [116], [1] * 116, [10, 10, 96], [16, 50, 0, 50], MANY])
@pytest.mark.parametrize("size", [0, 1, 99, 100])
def test_room_is_filled_behind_the_header(share: StandIn, content: bytes, sizes: list[int], size: int) -> None:
    memory = bytearray(sum(sizes))
    chain = DescriptorChain(0, [], views(memory, sizes))
    room = ChainRoom(chain, len(memory))
    assert room.size == len(memory) - 16
    assert room.preadv(share.fd, size, 77) == size
    assert memory == bytes(16) + content[77 : 77 + size] + bytes(room.size - size)
    assert chain.written == 0


@pytest.mark.parametrize("sizes", [[80, 100], [180], [1] * 180, [40, 40, 50, 50], [80, *[3] * (2 * MOST_BUFFERS + 5)]])
@pytest.mark.parametrize("size", [0, 1, 99, 100])
def test_a_source_is_what_follows_the_arguments(share: StandIn, content: bytes, sizes: list[int], size: int) -> None:
    data = bytearray(os.urandom(sum(sizes)))
    source = ChainSource(DescriptorChain(0, views(data, sizes), []), len(data))
    assert source.size == len(data) - WRITE_DATA
    assert source.pwritev(share.fd, size, 77) == size
    assert os.pread(share.fd, 300, 0) == content[:77] + data[80 : 80 + size] + content[77 + size : 300]


@pytest.mark.parametrize("sizes", [[80, 100], [40, 40, 50, 50]])
def test_a_source_is_appended_wherever_others_have_put_the_end(
    share: StandIn, content: bytes, sizes: list[int], monkeypatch: pytest.MonkeyPatch
) -> None:
    whole, data = os.pwritev, bytearray(os.urandom(180))

    def little(fd: int, parts: Sequence[memoryview], offset: int, flags: int) -> int:
        done = whole(fd, [parts[0][:30]], offset, flags)
        whole(fd, [b"other"], 0, os.RWF_APPEND)
        return done

    monkeypatch.setattr(os, "pwritev", little)
    assert ChainSource(DescriptorChain(0, views(data, sizes), []), 180).append(share.fd, 70) == 70
    appended = os.pread(share.fd, 1000, len(content))
    assert appended.replace(b"other", b"") == data[80:150]
    assert os.pread(share.fd, len(content), 0) == content


def test_what_is_appended_before_it_fails_is_told(share: StandIn, content: bytes, monkeypatch: pytest.MonkeyPatch) -> None:
    """To the guest nothing were there, and it would append it again."""
    whole, data, room = os.pwritev, bytearray(os.urandom(180)), [30, 20]

    def full(fd: int, parts: Sequence[memoryview], offset: int, flags: int) -> int:
        if not room:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        return whole(fd, [parts[0][: room.pop(0)]], offset, flags)

    monkeypatch.setattr(os, "pwritev", full)
    source = ChainSource(DescriptorChain(0, views(data, [180]), []), 180)
    assert source.append(share.fd, 100) == 50
    assert os.pread(share.fd, 1000, len(content)) == data[80:130]
    with pytest.raises(OSError, match="No space"):
        source.append(share.fd, 100)


def test_more_buffers_than_a_system_call_takes_are_filled_whole(share: StandIn, content: bytes) -> None:
    memory = bytearray(sum(MANY))
    room = ChainRoom(DescriptorChain(0, [], views(memory, MANY)), len(memory))
    assert room.preadv(share.fd, room.size, 0) == room.size
    assert memory[16:] == content[: room.size]


def test_a_read_ends_with_the_file(share: StandIn, content: bytes) -> None:
    memory = bytearray(1016)
    room = ChainRoom(DescriptorChain(0, [], views(memory, [16, 1000])), 1016)
    assert room.preadv(share.fd, 1000, len(content) - 10) == 10
    assert room.preadv(share.fd, 1000, len(content)) == 0
    assert memory == bytes(16) + content[-10:] + bytes(990)


def test_what_a_system_call_did_in_part_goes_on(share: StandIn, content: bytes, monkeypatch: pytest.MonkeyPatch) -> None:
    whole = os.preadv
    monkeypatch.setattr(os, "preadv", lambda fd, parts, offset: whole(fd, [parts[0][:7]], offset))
    memory = bytearray(116)
    room = ChainRoom(DescriptorChain(0, [], views(memory, [16, 50, 50])), 116)
    assert room.preadv(share.fd, 100, 5) == 100
    assert memory[16:] == content[5:105]


def test_what_fails_in_the_middle_fails_as_a_whole(share: StandIn, monkeypatch: pytest.MonkeyPatch) -> None:
    whole = os.preadv

    def once(fd: int, parts: Sequence[memoryview], offset: int) -> int:
        if offset:
            raise OSError(errno.EIO, "a bad sector")
        return whole(fd, [parts[0][:7]], offset)

    monkeypatch.setattr(os, "preadv", once)
    room = ChainRoom(DescriptorChain(0, [], views(bytearray(116), [16, 100])), 116)
    with pytest.raises(OSError, match="a bad sector"):
        room.preadv(share.fd, 100, 0)


@pytest.mark.parametrize(
    ("size", "offset"), [(101, 0), (100, (1 << 63) - 100), (1, (1 << 63) - 1), (1, 1 << 63), (1, 1 << 64)]
)
def test_nothing_is_moved_that_does_not_fit(share: StandIn, size: int, offset: int) -> None:
    """F21."""
    room = ChainRoom(DescriptorChain(0, [], views(bytearray(116), [16, 100])), 116)
    source = ChainSource(DescriptorChain(0, views(bytearray(180), [80, 100]), []), 180)
    with pytest.raises(OSError, match=hex(offset)) as read:
        room.preadv(share.fd, size, offset)
    with pytest.raises(OSError, match="WRITE") as written:
        source.pwritev(share.fd, size, offset)
    with pytest.raises(OSError, match="WRITE"):
        source.append(share.fd, 101)
    assert read.value.errno == errno.EINVAL
    assert written.value.errno == (errno.EFBIG if size <= 100 else errno.EINVAL)
