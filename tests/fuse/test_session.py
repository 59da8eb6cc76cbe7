"""What INIT agrees upon, and what a session ends with (F15)."""

from __future__ import annotations

import errno
import logging
from dataclasses import replace

import pytest

from vhostuser.devices.fs.agreement import MAX_WRITE, agree
from vhostuser.devices.fs.options import Cache, Choice, ShareOptions
from vhostuser.errors import RequestFailed
from vhostuser.fuse import structs as s
from vhostuser.fuse.numbers import InitFlag as F
from vhostuser.fuse.numbers import Opcode
from vhostuser.fuse.rules import RULES

from .standin import NEW_FLAGS, Answer, Guest, StandIn, StandInWindow, answer, body_of, guest_of, request

USUAL = (
    F.ASYNC_READ
    | F.ATOMIC_O_TRUNC
    | F.BIG_WRITES
    | F.AUTO_INVAL_DATA
    | F.ASYNC_DIO
    | F.PARALLEL_DIROPS
    | F.MAX_PAGES
    | F.SETXATTR_EXT
    | F.INIT_EXT
    | F.CREATE_SUPP_GROUP
)
PLUS = F.DO_READDIRPLUS | F.READDIRPLUS_AUTO
DAX = F.MAP_ALIGNMENT | F.HAS_INODE_DAX
ACL = F.POSIX_ACL | F.DONT_MASK | F.SETXATTR_EXT
EVERYTHING = s.InitIn(7, 45, 1 << 17, NEW_FLAGS, NEW_FLAGS)


@pytest.mark.parametrize("opcode", [opcode for opcode in RULES if opcode is not Opcode.INIT], ids=lambda each: each.name)
def test_before_init_and_after_destroy_nothing_is_done(fresh: Guest, share: StandIn, opcode: Opcode) -> None:
    """F15."""
    expected = Answer(errno.EIO, b"") if RULES[opcode].replies else None
    for _ in range(2):
        got = fresh.exchange(request(opcode, body_of(opcode)), 512)
        assert (answer(got, 2) if got else None) == expected
        assert share.calls == []
        fresh.init()
        assert fresh.ask(Opcode.DESTROY) == Answer(0, b"")
    assert share.resets == 2


def test_a_second_init_ends_the_session_before(fresh: Guest, share: StandIn) -> None:
    """F15: all that was open or looked up is gone."""
    fresh.init()
    assert share.resets == 0
    fresh.init(flags=F.ASYNC_READ)
    assert share.resets == 1
    assert share.agreed == F.ASYNC_READ
    assert fresh.ask(Opcode.GETATTR, bytes(16)).error == 0


def test_a_reset_of_the_device_and_the_end_of_the_guest_end_the_session(fresh: Guest, share: StandIn) -> None:
    fresh.init()
    fresh.frontend.reset()
    assert share.resets == 1
    fresh.start()
    assert fresh.ask(Opcode.GETATTR, bytes(16)) == Answer(errno.EIO, b"")


def test_the_share_is_reset_when_the_guest_goes_and_closed_with_the_device(share: StandIn) -> None:
    with guest_of(share) as guest:
        guest.init()
        assert not share.closed
    assert share.resets == 1
    assert share.closed


def test_a_window_that_can_not_be_reset_leaves_nothing_open_to_the_next_guest(share: StandIn) -> None:
    window = StandInWindow()
    with guest_of(share, window=window) as guest:
        guest.init()
        window.fails["reset"] = OSError(errno.EMFILE, "")
        guest.frontend.reset()
        assert share.resets == 1
        window.fails.clear()


@pytest.mark.parametrize(("major", "minor"), [(6, 45), (0, 0), (7, 0), (7, 30)])
def test_versions_before_virtio_fs_are_refused(fresh: Guest, share: StandIn, major: int, minor: int) -> None:
    """F15."""
    for _ in range(2):
        assert fresh.ask(Opcode.INIT, s.InitIn(major, minor).pack()) == Answer(errno.EPROTO, b"")
        assert fresh.ask(Opcode.GETATTR, bytes(16)) == Answer(errno.EIO, b"")
    assert fresh.init().major == 7


@pytest.mark.parametrize("major", [8, (1 << 32) - 1])
def test_a_later_major_version_is_told_ours_and_may_ask_again(fresh: Guest, share: StandIn, major: int) -> None:
    """F15."""
    assert fresh.init(major=major, minor=0) == s.InitOut(7, 45)
    assert fresh.ask(Opcode.GETATTR, bytes(16)) == Answer(errno.EIO, b"")
    assert fresh.init(minor=45).max_write == MAX_WRITE


@pytest.mark.parametrize(("theirs", "agreed"), [(31, 31), (44, 44), (45, 45), (46, 45), ((1 << 32) - 1, 45)])
def test_the_lower_minor_version_is_spoken(fresh: Guest, theirs: int, agreed: int) -> None:
    assert fresh.init(minor=theirs).minor == agreed


def test_an_init_of_the_other_byte_order_is_refused_and_said(
    fresh: Guest, share: StandIn, caplog: pytest.LogCaptureFixture
) -> None:
    """F15."""
    words = request(Opcode.INIT, s.InitIn(7, 45).pack(), unique=0)
    swapped = b"".join(words[at : at + 4][::-1] for at in range(0, len(words), 4))
    with caplog.at_level(logging.WARNING):
        assert answer(fresh.exchange(swapped), 0) == Answer(errno.ENOSYS, b"")
    assert "byte order" in caplog.text
    assert fresh.ask(Opcode.GETATTR, bytes(16)) == Answer(errno.EIO, b"")
    fresh.init()


def test_the_answer_says_how_much_goes_at_once(fresh: Guest) -> None:
    out = fresh.init()
    assert (out.max_write, out.max_pages, out.max_readahead, out.time_gran) == (1 << 20, 256, 1 << 17, 1)
    assert (out.max_background, out.congestion_threshold) == (65535, 49149)
    assert (out.map_alignment, out.max_stack_depth, out.request_timeout) == (0, 0, 0)
    assert fresh.init(flags=0).max_pages == 0


def test_an_init_of_older_guests_has_no_second_word_of_flags(fresh: Guest, share: StandIn) -> None:
    body = s.InitIn(7, 35, 4096, F.ASYNC_READ | F.INIT_EXT).pack()[:16]
    error, out = fresh.ask(Opcode.INIT, body)
    assert error == 0
    assert s.InitOut.unpack(out).minor == 35
    assert share.agreed == F.ASYNC_READ | F.INIT_EXT


def test_an_older_guest_sends_a_shorter_setxattr(fresh: Guest, share: StandIn) -> None:
    fresh.init(flags=NEW_FLAGS & ~F.SETXATTR_EXT)
    old = s.SetxattrIn(5, 2).pack()[:8] + b"user.name\0value"
    assert fresh.ask(Opcode.SETXATTR, old).error == 0
    [(_, call)] = share.calls
    assert (call.arguments, call.names, call.data) == (s.SetxattrIn(5, 2, 0), (b"user.name",), b"value")
    for size in range(len(old)):
        assert fresh.ask(Opcode.SETXATTR, old[:size]) == Answer(errno.EINVAL, b"")
    assert len(share.calls) == 1


OPTIONS = [
    (ShareOptions(), USUAL | PLUS | F.SUBMOUNTS),
    (ShareOptions(readdirplus=False), USUAL | F.SUBMOUNTS),
    (ShareOptions(cache=Cache.NEVER), USUAL | F.SUBMOUNTS),
    (ShareOptions(cache=Cache.ALWAYS, announce_submounts=False), USUAL | PLUS),
    (ShareOptions(writeback=True), USUAL | PLUS | F.SUBMOUNTS | F.WRITEBACK_CACHE),
    (ShareOptions(killpriv_v2=True), USUAL | PLUS | F.SUBMOUNTS | F.HANDLE_KILLPRIV_V2),
    (ShareOptions(allow_mmap=True), USUAL | PLUS | F.SUBMOUNTS | F.DIRECT_IO_ALLOW_MMAP),
    (ShareOptions(posix_acl=Choice.AUTO), USUAL | PLUS | F.SUBMOUNTS | ACL),
    (ShareOptions(posix_acl=Choice.ALWAYS), USUAL | PLUS | F.SUBMOUNTS | ACL),
]


@pytest.mark.parametrize(("options", "agreed"), OPTIONS)
def test_what_is_agreed_upon_is_what_both_want(options: ShareOptions, agreed: int) -> None:
    """What is not of use is never agreed upon, SECURITY_CTX and POSIX_LOCKS among it."""
    assert agree(EVERYTHING, options, dax=False) == agreed
    assert agree(EVERYTHING, options, dax=True) == agreed | DAX
    assert agree(s.InitIn(7, 45), replace(options, posix_acl=Choice.NEVER), dax=True) == 0
    for bit in range(43):
        flag = 1 << bit
        offer = s.InitIn(7, 45, 0, flag & NEW_FLAGS | F.INIT_EXT, flag >> 32)
        alone = replace(options, posix_acl=Choice.NEVER)
        expected = (flag | F.INIT_EXT) & (agree(EVERYTHING, alone, dax=True) & ~F.HAS_INODE_DAX)
        assert agree(offer, alone, dax=True) == expected


def test_the_second_word_of_flags_counts_only_with_init_ext() -> None:
    asked = s.InitIn(7, 45, 0, NEW_FLAGS & ~F.INIT_EXT, NEW_FLAGS)
    assert agree(asked, ShareOptions(), dax=True) >> 32 == 0


@pytest.mark.parametrize("missing", [F.POSIX_ACL, F.DONT_MASK, F.SETXATTR_EXT])
def test_access_lists_need_all_of_their_flags(missing: int) -> None:
    asked = s.InitIn(7, 45, 0, NEW_FLAGS & ~missing, 0)
    assert agree(asked, ShareOptions(posix_acl=Choice.AUTO), dax=False) & (F.POSIX_ACL | F.DONT_MASK) == 0
    with pytest.raises(OSError, match="--posix-acl=always") as raised:
        agree(asked, ShareOptions(posix_acl=Choice.ALWAYS), dax=False)
    assert raised.value.errno == errno.EPROTO


# The window


def test_the_window_begins_and_ends_with_each_session(share: StandIn) -> None:
    window = StandInWindow()
    with guest_of(share, window=window) as guest:
        out = guest.init(flags2=NEW_FLAGS)
        assert out.map_alignment == 21
        assert (out.flags | out.flags2 << 32) & DAX == DAX
        assert window.calls == [("begin",)]
        guest.init(flags2=NEW_FLAGS)
        guest.ask(Opcode.DESTROY)
        guest.init(flags2=NEW_FLAGS)
        assert window.calls == [("begin",), ("end",), ("begin",), ("end",), ("begin",)]
        guest.frontend.reset()
        assert window.calls[5:] == [("reset",)]
        guest.start()
        guest.init()
        assert window.calls[5:] == [("reset",), ("begin",)]
    assert window.calls[7:] == [("reset",), ("close",)]


def test_f27_a_window_that_is_not_mapped_again_is_said_to_be_what_it_is(
    share: StandIn, caplog: pytest.LogCaptureFixture
) -> None:
    """The session goes on; the next one is told whether there is a window."""
    window = StandInWindow()
    with guest_of(share, window=window) as guest, caplog.at_level(logging.WARNING):
        guest.init()
        guest.frontend.reset()
        window.fails["ready"] = window.fails["begin"] = OSError(errno.ENODEV, "the front-end said no")
        guest.start()
        assert guest.ask(Opcode.GETATTR, bytes(16)).error == errno.EIO
        assert "was taken back when the rings began anew, and is not mapped again: the front-end said no" in caplog.text
        assert "there is no DAX" not in caplog.text
        assert guest.init(flags2=NEW_FLAGS).map_alignment == 0
        assert "there is no DAX in this session, for the window can't be mapped: the front-end said no" in caplog.text
        assert not [record for record in caplog.records if record.exc_info]


def test_the_window_is_told_of_each_driver(share: StandIn) -> None:
    window = StandInWindow()
    with guest_of(share, window=window) as guest:
        guest.alive()
        assert window.readies == 1
        guest.frontend.reset()
        guest.start()
        guest.alive()
        assert window.readies == 2


def test_a_guest_without_dax_has_no_window(share: StandIn) -> None:
    window = StandInWindow()
    with guest_of(share, window=window) as guest:
        out = guest.init(flags=NEW_FLAGS & ~F.MAP_ALIGNMENT, flags2=NEW_FLAGS)
        assert (out.flags | out.flags2 << 32) & DAX == 0
        assert out.map_alignment == 0
        assert guest.ask(Opcode.SETUPMAPPING, body_of(Opcode.SETUPMAPPING)) == Answer(errno.ENOSYS, b"")
        assert guest.ask(Opcode.REMOVEMAPPING, body_of(Opcode.REMOVEMAPPING)) == Answer(errno.ENOSYS, b"")
        assert window.calls == []


@pytest.mark.parametrize("failure", [OSError(errno.ENOMEM, "no memory"), RequestFailed("SHMEM_MAP", 1)], ids=repr)
def test_a_window_that_can_not_be_mapped_is_not_offered_and_tried_again(share: StandIn, failure: Exception) -> None:
    """F27: reading and writing work regardless."""
    window = StandInWindow()
    window.fails["begin"] = failure
    with guest_of(share, window=window) as guest:
        out = guest.init(flags2=NEW_FLAGS)
        assert (out.flags | out.flags2 << 32) & DAX == 0
        assert guest.ask(Opcode.SETUPMAPPING, body_of(Opcode.SETUPMAPPING)) == Answer(errno.ENOSYS, b"")
        assert guest.ask(Opcode.READ, body_of(Opcode.READ)).error == 0
        window.fails.clear()
        assert guest.init(flags2=NEW_FLAGS).map_alignment == 21


def test_a_session_ends_whether_or_not_the_window_could_be_written_back(
    share: StandIn, caplog: pytest.LogCaptureFixture
) -> None:
    window = StandInWindow()
    window.fails["end"] = OSError(errno.ENOSPC, "no space left")
    with guest_of(share, window=window) as guest, caplog.at_level(logging.WARNING):
        guest.init()
        assert guest.ask(Opcode.DESTROY) == Answer(0, b"")
        assert share.resets == 1
        assert "no space left" in caplog.text
        guest.init()
