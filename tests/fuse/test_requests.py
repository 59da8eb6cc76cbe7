"""Whatever bytes a guest sends: right ones reach the share, others are an errno and the queue lives (F13, F14, F17, F21)."""

from __future__ import annotations

import errno
import logging
import os

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from vhostuser.errors import MemoryFault
from vhostuser.fuse import structs as s
from vhostuser.fuse.numbers import NAME_MAX, Opcode
from vhostuser.fuse.rules import IN_HEADER_SIZE, OUT_HEADER_SIZE, RULES
from vhostuser.testing import DEADLINE

from .standin import ALL, MADE, Answer, Guest, StandIn, answer, body_of, guest_of, request

OWN = (Opcode.INIT, Opcode.DESTROY, Opcode.INTERRUPT, Opcode.SETUPMAPPING, Opcode.REMOVEMAPPING)
SHARED = [opcode for opcode in RULES if opcode not in OWN]
REPLYING = [opcode for opcode in RULES if RULES[opcode].replies]
SILENT = [opcode for opcode in RULES if not RULES[opcode].replies]


def by_name(opcode: Opcode) -> str:
    """How a test is called."""
    return opcode.name


@pytest.mark.parametrize("opcode", SHARED, ids=by_name)
def test_a_right_request_reaches_the_method_of_its_name(guest: Guest, share: StandIn, opcode: Opcode) -> None:
    if opcode in SILENT:
        guest.tell(opcode, body_of(opcode), node=7)
    else:
        assert guest.ask(opcode, body_of(opcode), node=7).error == 0
    [(name, call)] = share.calls
    rule = RULES[opcode]
    assert name == opcode.name.lower()
    assert (call.header.nodeid, len(call.names), call.header.pid) == (7, rule.names, 1)
    assert type(call.arguments) is (rule.arguments or type(None))


@pytest.mark.parametrize("opcode", RULES, ids=by_name)
def test_a_request_cut_anywhere_is_refused_and_the_queue_lives(guest: Guest, share: StandIn, opcode: Opcode) -> None:
    """F13: with the length that it had, and with that which it has now."""
    whole = request(opcode, body_of(opcode))
    for size in range(len(whole)):
        if size < IN_HEADER_SIZE:
            assert guest.exchange(whole[:size], 256) == b""
            continue
        assert _refused(guest, whole[:size], opcode)
        if (opcode, size) != (Opcode.INIT, IN_HEADER_SIZE + 16):  # which is an INIT of older guests
            assert _refused(guest, request(opcode, whole[IN_HEADER_SIZE:size]), opcode)
    assert share.calls == []
    assert share.resets == 0
    guest.alive()


def _refused(guest: Guest, data: bytes, opcode: Opcode) -> bool:
    got = guest.exchange(data, 512)
    return got == b"" if opcode in SILENT else answer(got, 2) == Answer(errno.EINVAL, b"")


@pytest.mark.parametrize("length", [0, 39, 40, (1 << 32) - 1])
@pytest.mark.parametrize("opcode", [Opcode.LOOKUP, Opcode.WRITE, Opcode.READ, Opcode.INIT])
def test_a_length_that_is_not_what_is_there_is_refused(guest: Guest, share: StandIn, opcode: Opcode, length: int) -> None:
    """F13."""
    assert answer(guest.exchange(request(opcode, body_of(opcode), length=length)), 2) == Answer(errno.EINVAL, b"")
    assert share.calls == []
    guest.alive()


@pytest.mark.parametrize("opcode", RULES, ids=by_name)
def test_bytes_after_the_end_are_refused(guest: Guest, share: StandIn, opcode: Opcode) -> None:
    assert _refused(guest, request(opcode, body_of(opcode) + b"more"), opcode)
    assert share.calls == []


def test_a_request_longer_than_any_is_refused(guest: Guest, share: StandIn) -> None:
    body = s.SetxattrIn(1 << 20).pack() + b"user.name\0" + bytes(1 << 20)
    assert guest.ask(Opcode.SETXATTR, body) == Answer(errno.EINVAL, b"")
    assert share.calls == []


UNKNOWN = [0, 7, 19, 37, 39, 40, 41, *range(53, 4097), 1 << 31, (1 << 32) - 1]


def test_unknown_requests_are_not_supported(guest: Guest, share: StandIn) -> None:
    """F14; among them BMAP, IOCTL, POLL, NOTIFY_REPLY (F39) and CUSE_INIT."""
    assert {guest.ask(opcode, b"anything").error for opcode in UNKNOWN} == {errno.ENOSYS}
    assert share.calls == []
    guest.alive()


def test_what_a_share_lacks_is_not_supported(share: StandIn) -> None:
    class Less(StandIn):
        def __getattr__(self, name: str):  # type: ignore[no-untyped-def]  # as in its parent
            if name == "statx":
                raise AttributeError(name)
            return super().__getattr__(name)

    with guest_of(Less()) as guest:
        guest.init()
        assert guest.ask(Opcode.STATX, body_of(Opcode.STATX)) == Answer(errno.ENOSYS, b"")


BAD_NAMES = [(name, errno.EINVAL) for name in (b"", b".", b"..", b"a/b", b"/etc/passwd", b"/", b"../x", b"a/")]
LONG_NAMES = [(b"n" * (NAME_MAX + 1), errno.ENAMETOOLONG), (b"n" * 4096, errno.ENAMETOOLONG)]
NAMED = {Opcode.LOOKUP, Opcode.SYMLINK, Opcode.MKNOD, Opcode.MKDIR, Opcode.UNLINK, Opcode.RMDIR, Opcode.LINK, Opcode.CREATE}
TWICE = (Opcode.RENAME, Opcode.RENAME2)


def _named(opcode: Opcode, *names: bytes) -> bytes:
    given = RULES[opcode].arguments
    names = (*names, b"target") if opcode is Opcode.SYMLINK else names
    return (bytes(given.STRUCT.size) if given else b"") + b"".join(name + b"\0" for name in names)


@pytest.mark.parametrize(("name", "error"), [*BAD_NAMES, *LONG_NAMES])
def test_what_names_no_entry_is_refused(guest: Guest, share: StandIn, name: bytes, error: int) -> None:
    """F01, F02."""
    assert {guest.ask(opcode, _named(opcode, name)) for opcode in NAMED} == {Answer(error, b"")}
    for opcode in TWICE:
        assert guest.ask(opcode, _named(opcode, name, b"new")) == Answer(error, b"")
        assert guest.ask(opcode, _named(opcode, b"old", name)) == Answer(error, b"")
    assert share.calls == []


def test_a_nul_within_a_name_is_refused(guest: Guest, share: StandIn) -> None:
    """F01: it would be another name."""
    assert {guest.ask(opcode, _named(opcode, b"a\0b")) for opcode in NAMED} == {Answer(errno.EINVAL, b"")}
    assert share.calls == []


@pytest.mark.parametrize("name", [b"n" * NAME_MAX, b"\xff\xfe", "ü".encode(), b"...", b" ", b"\n", b"-rf"])
def test_any_other_name_reaches_the_share_as_it_is(guest: Guest, share: StandIn, name: bytes) -> None:
    """F01."""
    for opcode in NAMED:
        assert guest.ask(opcode, _named(opcode, name)).error == 0
    assert [call.names[0] for _, call in share.calls] == [name] * len(NAMED)


def test_where_a_symbolic_link_leads_and_xattrs_are_no_names_of_entries(guest: Guest, share: StandIn) -> None:
    assert guest.ask(Opcode.SYMLINK, b"name\0../" + b"x" * 4000 + b"\0").error == 0
    assert guest.ask(Opcode.SYMLINK, b"name\0/\0").error == 0
    assert guest.ask(Opcode.REMOVEXATTR, b"a/b\0").error == 0
    assert guest.ask(Opcode.TMPFILE, body_of(Opcode.TMPFILE)).error == 0
    assert len(share.calls) == 4


@pytest.mark.parametrize("opcode", [opcode for opcode in RULES if RULES[opcode].extensions], ids=by_name)
def test_extensions_are_as_long_as_the_header_says(guest: Guest, share: StandIn, opcode: Opcode) -> None:
    extension = s.ExtHeader(16, 32).pack() + b"groups.."
    assert guest.ask(opcode, body_of(opcode) + extension, ext=2).error == 0
    assert share.calls[0][1].data == extension
    for wrong in (0, 1, 3, 0xFFFF):
        assert guest.ask(opcode, body_of(opcode) + extension, ext=wrong) == Answer(errno.EINVAL, b"")
    assert len(share.calls) == 1


@pytest.mark.parametrize("size", [0, 4, 6, (1 << 32) - 1])
def test_a_value_is_as_long_as_setxattr_says(guest: Guest, share: StandIn, size: int) -> None:
    """F12."""
    assert guest.ask(Opcode.SETXATTR, s.SetxattrIn(size).pack() + b"user.name\0value") == Answer(errno.EINVAL, b"")
    assert share.calls == []


@pytest.mark.parametrize("count", [0, 1, 3, 1 << 28, (1 << 32) - 1])
def test_a_batch_of_forgets_is_as_long_as_it_says_or_ignored(guest: Guest, share: StandIn, count: int) -> None:
    """F17."""
    nodes = s.ForgetOne(2, 1).pack() + s.ForgetOne(3, ALL).pack()
    guest.tell(Opcode.BATCH_FORGET, s.BatchForgetIn(count).pack() + nodes)
    assert share.calls == []
    guest.tell(Opcode.BATCH_FORGET, s.BatchForgetIn(2).pack() + nodes)
    assert share.names == ["batch_forget"]


@pytest.mark.parametrize("opcode", SILENT, ids=by_name)
def test_a_request_without_an_answer_gets_none_whatever_comes_of_it(guest: Guest, share: StandIn, opcode: Opcode) -> None:
    """F17, F38."""
    share.fails = {"forget": OSError(errno.EBADF, ""), "batch_forget": RuntimeError("a bug")}
    for room in (0, 8, 64):
        assert guest.exchange(request(opcode, body_of(opcode)), room, guest.hiprio) == b""
        assert guest.exchange(request(opcode, body_of(opcode)), room) == b""
    guest.alive()


@pytest.mark.parametrize("unique", [0, 2, 3, ALL])
def test_an_interrupt_of_anything_is_ignored(guest: Guest, share: StandIn, unique: int) -> None:
    """F38."""
    guest.tell(Opcode.INTERRUPT, s.InterruptIn(unique).pack())
    assert share.calls == []
    guest.alive()


# Data


@pytest.mark.parametrize(
    ("offset", "size"), [(0, 4096), (1, 100), (4096, 65536), (0, 0), (64 * 4096 - 10, 4096), (1 << 40, 8)]
)
def test_read_gives_what_is_in_the_file(guest: Guest, content: bytes, offset: int, size: int) -> None:
    assert guest.ask(Opcode.READ, s.ReadIn(0, offset, size).pack(), room=16 + size) == Answer(
        0, content[offset : offset + size]
    )


@pytest.mark.parametrize("size", [4097, 1 << 20, (1 << 32) - 1])
def test_a_read_is_never_longer_than_its_room(guest: Guest, content: bytes, size: int) -> None:
    """F21."""
    assert guest.ask(Opcode.READ, s.ReadIn(0, 0, size).pack(), room=16 + 4096) == Answer(0, content[:4096])


@pytest.mark.parametrize("opcode", [Opcode.READDIR, Opcode.READDIRPLUS])
@pytest.mark.parametrize("size", [0, 4080, 4081, (1 << 32) - 1])
def test_no_more_is_wanted_of_a_directory_than_there_is_room_for(
    guest: Guest, share: StandIn, opcode: Opcode, size: int
) -> None:
    """F21."""
    assert guest.ask(opcode, s.ReadIn(5, 6, size, 7, 8, 9).pack()) == Answer(0, b"")
    [(_, call)] = share.calls
    assert call.arguments == s.ReadIn(5, 6, min(size, 4080), 7, 8, 9)


@pytest.mark.parametrize("opcode", [Opcode.READ, Opcode.WRITE])
@pytest.mark.parametrize("offset", [(1 << 63) - 8, (1 << 63) - 1, 1 << 63, ALL - 7, ALL])
def test_no_file_reaches_that_far(guest: Guest, opcode: Opcode, offset: int) -> None:
    """F21."""
    arguments = (s.ReadIn if opcode is Opcode.READ else s.WriteIn)(0, offset, 8).pack()
    data = b"12345678" if opcode is Opcode.WRITE else b""
    got = guest.ask(opcode, arguments + data)
    assert got.body == b""
    assert got.error in (errno.EINVAL, errno.EFBIG)
    guest.alive()


@pytest.mark.parametrize(("offset", "size"), [(0, 5), (4096, 65536), (100, 0), (64 * 4096 - 5, 4096)])
def test_write_puts_it_into_the_file(guest: Guest, share: StandIn, content: bytes, offset: int, size: int) -> None:
    data = os.urandom(size)
    got = guest.ask(Opcode.WRITE, s.WriteIn(0, offset, size).pack() + data)
    assert got == Answer(0, s.WriteOut(size).pack())
    expected = content[:offset] + data + content[offset + size :]
    assert os.pread(share.fd, len(expected) + 1, 0) == expected


@pytest.mark.parametrize("size", [0, 4, 9, 1 << 20, (1 << 32) - 1])
def test_a_write_is_as_long_as_it_says(guest: Guest, share: StandIn, content: bytes, size: int) -> None:
    """F21."""
    assert guest.ask(Opcode.WRITE, s.WriteIn(0, 0, size).pack() + b"contents") == Answer(errno.EINVAL, b"")
    assert share.calls == []


CUTS = [[80], [40, 40], [1] * 80, [39, 42], [80, 100], [40, 140, 3]]


@pytest.mark.parametrize("pieces", CUTS)
@pytest.mark.parametrize("indirect", [False, True])
def test_parts_may_lie_in_any_buffers(
    guest: Guest, share: StandIn, content: bytes, pieces: list[int], indirect: bool
) -> None:
    """A WRITE and a READ in buffers cut anywhere ("Message Framing")."""
    if indirect:
        guest.frontend.stop_queue(0)
        guest.frontend.stop_queue(1)
        guest.start(indirect=True)
    data = os.urandom(103)
    whole = request(Opcode.WRITE, s.WriteIn(0, 50, len(data)).pack() + data)
    parts = _cut(whole, pieces[:40])
    done = guest.queue.finish(guest.queue.submit(parts, [1, 15, 8]), timeout=DEADLINE)
    assert answer(done.data, 2) == Answer(0, s.WriteOut(103).pack())
    rooms = [min(size, 200) for size in pieces[:40]]
    ticket = guest.queue.submit([request(Opcode.READ, s.ReadIn(0, 40, 200).pack())], rooms)
    written = content[:50] + data + content[153:]
    room = max(0, sum(rooms) - OUT_HEADER_SIZE)
    assert answer(guest.queue.finish(ticket, timeout=DEADLINE).data, 2) == Answer(0, written[40 : 40 + min(200, room)])


def _cut(data: bytes, sizes: list[int]) -> list[bytes]:
    parts = []
    for size in sizes:
        parts.append(data[:size])
        data = data[size:]
    return [part for part in [*parts, data] if part]


# Room for the answer


@pytest.mark.parametrize("opcode", REPLYING, ids=by_name)
def test_without_room_for_an_answer_nothing_is_done(guest: Guest, share: StandIn, opcode: Opcode) -> None:
    for room in (0, 1, 15):
        assert guest.exchange(request(opcode, body_of(opcode)), room) == b""
    rule = RULES[opcode]
    if rule.result and not rule.data_out:
        for room in (16, 16 + rule.result.STRUCT.size - 1):
            assert guest.ask(opcode, body_of(opcode), room=room) == Answer(errno.EIO, b"")
    assert share.calls == []
    assert share.resets == 0
    guest.alive()


@pytest.mark.parametrize("opcode", [Opcode.CREATE, Opcode.TMPFILE])
def test_a_file_is_made_only_where_the_answer_fits(guest: Guest, share: StandIn, opcode: Opcode) -> None:
    assert guest.ask(opcode, body_of(opcode), room=15 + len(MADE)) == Answer(errno.EIO, b"")
    assert share.calls == []
    assert guest.ask(opcode, body_of(opcode), room=16 + len(MADE)) == Answer(0, MADE)


@pytest.mark.parametrize(
    ("opcode", "error"),
    [
        (Opcode.GETXATTR, errno.ERANGE),
        (Opcode.LISTXATTR, errno.ERANGE),
        (Opcode.READLINK, errno.EIO),
        (Opcode.READDIR, errno.EIO),
        (Opcode.FSYNC, errno.EIO),
    ],
)
def test_an_answer_that_does_not_fit_is_an_error(guest: Guest, share: StandIn, opcode: Opcode, error: int) -> None:
    share.answers[opcode.name.lower()] = b"12345678"
    assert guest.ask(opcode, body_of(opcode), room=24) == Answer(0, b"12345678")
    assert guest.ask(opcode, body_of(opcode), room=23) == Answer(error, b"")
    guest.alive()


# What fails


@pytest.mark.parametrize("number", [errno.ENOENT, errno.EIO, errno.EDQUOT, errno.ESTALE, 511])
def test_an_errno_of_the_share_reaches_the_guest(guest: Guest, share: StandIn, number: int) -> None:
    for name, opcode in (("lookup", Opcode.LOOKUP), ("read", Opcode.READ), ("write", Opcode.WRITE)):
        share.fails[name] = OSError(number, "as told")
        assert guest.ask(opcode, body_of(opcode)) == Answer(number, b"")


@pytest.mark.parametrize(
    ("failure", "error"),
    [
        (OSError("no errno"), errno.EIO),
        (OSError(512, "none of the guest's"), errno.EIO),
        (OSError(-5, "none at all"), errno.EIO),
        (TimeoutError(), errno.EIO),
        (OverflowError("int too large"), errno.EINVAL),
        (MemoryFault("memory is gone"), errno.EIO),
        (RuntimeError("a bug"), errno.EIO),
        (MemoryError(), errno.EIO),
        (SystemExit(3), errno.EIO),
    ],
    ids=repr,
)
def test_whatever_fails_is_an_errno_and_the_queue_lives(
    guest: Guest, share: StandIn, failure: BaseException, error: int, caplog: pytest.LogCaptureFixture
) -> None:
    share.fails["getattr"] = share.fails["read"] = failure
    assert guest.ask(Opcode.GETATTR, bytes(16)) == Answer(error, b"")
    assert guest.ask(Opcode.READ, body_of(Opcode.READ)) == Answer(error, b"")
    share.fails.clear()
    assert guest.ask(Opcode.GETATTR, bytes(16)).error == 0


def test_a_bug_in_the_share_is_one_record_of_the_log(guest: Guest, share: StandIn, caplog: pytest.LogCaptureFixture) -> None:
    share.fails["getattr"] = RuntimeError("a bug")
    with caplog.at_level(logging.WARNING):
        guest.ask(Opcode.GETATTR, bytes(16))
    [record] = caplog.records
    assert record.message.startswith("GETATTR failed")


def test_an_errno_is_no_record_of_the_log(guest: Guest, share: StandIn, caplog: pytest.LogCaptureFixture) -> None:
    share.fails["lookup"] = FileNotFoundError(errno.ENOENT, "")
    with caplog.at_level(logging.WARNING):
        assert guest.ask(Opcode.LOOKUP, b"name\0") == Answer(errno.ENOENT, b"")
    assert caplog.records == []


def test_requests_and_bytes_are_counted(guest: Guest, share: StandIn) -> None:
    assert guest.device.counts == {"INIT": 1, "bytes_read": 0, "bytes_written": 0}
    for size in (100, 200):
        guest.ask(Opcode.READ, s.ReadIn(0, 0, size).pack())
        guest.ask(Opcode.WRITE, s.WriteIn(0, 0, size).pack() + bytes(size))
    share.fails["read"] = OSError(errno.EIO, "")
    guest.ask(Opcode.READ, s.ReadIn(0, 0, 8).pack())
    guest.ask(4095)
    guest.tell(Opcode.FORGET, bytes(8))
    counts = {"INIT": 1, "READ": 3, "WRITE": 2, "FORGET": 1, "bytes_read": 300, "bytes_written": 300}
    assert guest.device.counts == counts


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], max_examples=150)
@given(data=st.data())
def test_no_bytes_stop_the_queue(guest: Guest, share: StandIn, data: st.DataObject) -> None:
    """Requests whose header is mostly right, with any body; buffers of any size."""
    opcode = data.draw(st.sampled_from([*RULES, 0, 37, 39, 1 << 31]))
    body = data.draw(st.one_of(st.binary(max_size=200), st.just(b"".join(_mutated(data, opcode)))))
    length = data.draw(st.one_of(st.none(), st.none(), st.integers(0, (1 << 32) - 1)))
    ext = data.draw(st.one_of(st.just(0), st.integers(0, 0xFFFF)))
    whole = request(opcode, body, node=data.draw(st.integers(0, ALL)), unique=77, length=length, ext=ext)
    room = data.draw(st.integers(0, 400))
    queue = data.draw(st.sampled_from([guest.queue, guest.hiprio]))
    got = guest.exchange(whole, room, queue)
    if got:
        answer(got, 77)
    guest.alive()
    assert share.agreed


def _mutated(data: st.DataObject, opcode: int) -> list[bytes]:
    """The right body, with some bytes of it others."""
    body = bytearray(body_of(Opcode(opcode)) if opcode in RULES else b"")
    for at in data.draw(st.lists(st.integers(0, len(body) - 1), max_size=4)) if body else []:
        body[at] = data.draw(st.integers(0, 255))
    return [bytes(body), data.draw(st.binary(max_size=8))]


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], max_examples=50)
@given(st.binary(min_size=1, max_size=300), st.integers(0, 64))
def test_no_garbage_stops_the_queue(guest: Guest, garbage: bytes, room: int) -> None:
    guest.exchange(garbage, room)
    guest.alive()
