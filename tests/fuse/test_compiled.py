"""READ without Python: the same answers, from the same files, and nothing is closed under it."""

from __future__ import annotations

import errno
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Final

import pytest

from tests.virtio_rig import BUFFERS, CompiledRig
from vhostuser import _native
from vhostuser.device import Keep
from vhostuser.devices.fs.device import FuseDevice
from vhostuser.devices.fs.options import Dax, ShareOptions
from vhostuser.devices.fs.progress import Progress
from vhostuser.devices.fs.share import share_directory
from vhostuser.fuse import structs as s
from vhostuser.fuse.numbers import Opcode
from vhostuser.fuse.rules import IN_HEADER_SIZE, OUT_HEADER_SIZE, RULES
from vhostuser.testing import joined
from vhostuser.transport.fds import OwnedFd
from vhostuser.virtio.chain import DescriptorChain

from .standin import ALL, MEMORY, Answer, Guest, StandIn, body_of, guest_of, request

HALVES: Final = ("python", "compiled") if _native.accelerated else ("python",)
CONTENT: Final = bytes(range(256)) * 64
PLAIN: Final = ShareOptions(dax=Dax.OFF, num_request_queues=2)
OFFSET_MAX: Final = (1 << 63) - 1


@contextmanager
def shared(folder: Path, half: str, options: ShareOptions = PLAIN) -> Iterator[Guest]:
    """A guest of a directory with the file `file`, whose READs are Python's or not."""
    (folder / "file").write_bytes(CONTENT)
    with (
        pytest.MonkeyPatch.context() as patched,
        share_directory(OwnedFd(os.open(folder, os.O_PATH)), options) as device,
        joined(device) as (frontend, _),
    ):
        if half == "python":
            patched.setattr(FuseDevice, "compiled", lambda self: None)
        frontend.share_memory(MEMORY)
        guest = Guest(frontend, device)
        guest.init()
        yield guest


def opened(guest: Guest, name: bytes = b"file", flags: int = os.O_RDONLY) -> tuple[int, int]:
    """An inode, and the `fh` of it."""
    nodeid = s.EntryOut.unpack(guest.ask(Opcode.LOOKUP, name + b"\0").body).nodeid
    return nodeid, s.OpenOut.unpack(guest.ask(Opcode.OPEN, s.OpenIn(flags).pack(), node=nodeid).body).fh


def read(guest: Guest, file: tuple[int, int], offset: int, size: int, room: int = 1 << 16) -> Answer:
    return guest.ask(Opcode.READ, s.ReadIn(file[1], offset, size).pack(), node=file[0], room=room)


def without_python(guest: Guest) -> int:
    """How many READs were done so."""
    compiled = guest.device._server.progress._compiled
    return compiled.reads if compiled else 0


@pytest.mark.parametrize("half", HALVES)
@pytest.mark.parametrize(
    ("offset", "size", "room"),
    [
        (0, 4096, 4112),
        (1, 1, 17),
        (4096, 1 << 30, 4112),
        (0, 0, 16),
        (0, (1 << 32) - 1, 1 << 16),
        (len(CONTENT) - 5, 4096, 4112),
        (len(CONTENT), 4096, 4112),
        (OFFSET_MAX - 4096, 4096, 4112),
    ],
)
def test_a_right_read_needs_no_python(tmp_path: Path, half: str, offset: int, size: int, room: int) -> None:
    with shared(tmp_path, half) as guest:
        file = opened(guest)
        assert read(guest, file, offset, size, room) == Answer(0, CONTENT[offset:][: min(size, room - OUT_HEADER_SIZE)])
        assert without_python(guest) == (half == "compiled")
        counts = guest.device.counts
        assert (counts["READ"], counts["bytes_read"]) == (1, len(CONTENT[offset:][: min(size, room - 16)]))


@pytest.mark.parametrize("half", HALVES)
@pytest.mark.parametrize(
    ("change", "error"),
    [
        ({"fh": 0}, errno.EBADF),
        ({"fh": ALL}, errno.EBADF),
        ({"node": 1}, errno.EBADF),
        ({"node": ALL}, errno.EBADF),
        ({"offset": OFFSET_MAX}, errno.EINVAL),
        ({"offset": 1 << 63}, errno.EINVAL),
        ({"offset": ALL}, errno.EINVAL),
        ({"length": IN_HEADER_SIZE}, errno.EINVAL),
        ({"length": 1 << 31}, errno.EINVAL),
        ({"more": b"\0"}, errno.EINVAL),
        ({"cut": 1}, errno.EINVAL),
        ({"cut": 8}, errno.EINVAL),
        ({"room": OUT_HEADER_SIZE - 1}, None),
        ({"flags": os.O_WRONLY}, errno.EBADF),
        ({"released": True}, errno.EBADF),
        ({"renewed": True}, errno.EBADF),
        ({"destroyed": True}, errno.EIO),
    ],
    ids=str,
)
def test_f13_f20_f21_a_wrong_read_is_told_what_python_tells(
    tmp_path: Path, half: str, change: dict[str, int | bytes], error: int | None
) -> None:
    with shared(tmp_path, half) as guest:
        node, fh = opened(guest, flags=int(change.get("flags", os.O_RDONLY)))
        if change.get("released"):
            assert guest.ask(Opcode.RELEASE, s.ReleaseIn(fh).pack(), node=node).error == 0
        if change.get("renewed"):
            guest.init()
        if change.get("destroyed"):
            guest.ask(Opcode.DESTROY)
        body = s.ReadIn(int(change.get("fh", fh)), int(change.get("offset", 0)), 4096).pack()
        body = body[: len(body) - int(change.get("cut", 0))] + bytes(change.get("more", b""))
        length = int(change["length"]) if "length" in change else None
        sent = request(Opcode.READ, body, node=int(change.get("node", node)), length=length)
        got = guest.exchange(sent, int(change.get("room", 4112)))
        assert got == (b"" if error is None else s.OutHeader(OUT_HEADER_SIZE, -error, 2).pack())
        assert without_python(guest) == 0
        assert guest.device.counts["bytes_read"] == 0
        guest.alive()


@pytest.mark.parametrize("half", HALVES)
def test_a_read_in_pieces_of_any_size(tmp_path: Path, half: str) -> None:
    with shared(tmp_path, half) as guest:
        node, fh = opened(guest)
        sent = request(Opcode.READ, s.ReadIn(fh, 3, 200).pack(), node=node)
        ticket = guest.queue.submit([sent[:7], sent[7:40], sent[40:]], [1, 14, 1, 1, 100, 99, 50])
        data = guest.queue.finish(ticket).data
        assert data == s.OutHeader(OUT_HEADER_SIZE + 200, 0, 2).pack() + CONTENT[3:203]
        assert without_python(guest) == (half == "compiled")


@pytest.mark.parametrize("half", HALVES)
@pytest.mark.parametrize("dax_write", [False, True])
def test_what_the_window_may_have_is_python_s(tmp_path: Path, half: str, dax_write: bool) -> None:
    with shared(tmp_path, half, ShareOptions(dax_window=4 << 20, dax_write=dax_write)) as guest:
        assert read(guest, opened(guest), 0, 100).body == CONTENT[:100]
        assert without_python(guest) == (half == "compiled" and not dax_write)


@pytest.mark.parametrize("half", HALVES)
def test_workers_do_what_they_are_for(tmp_path: Path, half: str) -> None:
    """A READ that the host is slow with holds up no other one."""
    with shared(tmp_path, half, ShareOptions(dax=Dax.OFF, thread_pool_size=2)) as guest:
        assert read(guest, opened(guest), 0, 100).body == CONTENT[:100]
        assert without_python(guest) == 0


@pytest.mark.parametrize("half", HALVES)
def test_f20_a_read_meets_no_other_file_under_a_number_that_was_closed(tmp_path: Path, half: str) -> None:
    """One queue reads a file while the other closes it and opens another one, which gets its fd."""
    size, rounds = 1 << 20, 20
    (tmp_path / "big").write_bytes(b"a" * size)
    (tmp_path / "other").write_bytes(b"b" * size)
    with shared(tmp_path, half) as guest:
        second = guest.frontend.start_queue(2, size=64)
        for at in range(rounds):
            node, fh = opened(guest, b"big")
            other, _ = opened(guest, b"other")
            sent = request(Opcode.READ, s.ReadIn(fh, 0, size).pack(), node=node)
            ticket = second.submit([sent], [OUT_HEADER_SIZE + size])
            second.notify()
            assert guest.ask(Opcode.RELEASE, s.ReleaseIn(fh).pack(), node=node).error == 0
            again = guest.ask(Opcode.OPEN, s.OpenIn(os.O_RDONLY).pack(), node=other)
            data = second.finish(ticket).data
            header, body = s.OutHeader.unpack(data[:OUT_HEADER_SIZE]), data[OUT_HEADER_SIZE:]
            assert (header.error, body) in ((0, b"a" * size), (-errno.EBADF, b"")), at
            assert again.error == 0


@pytest.mark.skipif(not _native.accelerated, reason="nothing is compiled")
def test_what_is_small_never_is_a_chain(share: StandIn, monkeypatch: pytest.MonkeyPatch) -> None:
    """But for what begins and ends a session, or is about the window, which may have to wait for the front-end."""
    served = list[str]()
    process = FuseDevice.process

    def noted(self: FuseDevice, queue: int, chain: DescriptorChain) -> Keep | None:
        served.append(Opcode(int.from_bytes(chain.readable[0][4:8], "little")).name)
        return process(self, queue, chain)

    with guest_of(share) as guest:
        guest.init()
        monkeypatch.setattr(FuseDevice, "process", noted)
        for opcode, rule in RULES.items():
            (guest.ask if rule.replies else guest.tell)(opcode, body_of(opcode))
            guest.init()
    assert sorted(set(served)) == ["DESTROY", "INIT", "READ", "REMOVEMAPPING", "SETUPMAPPING", "WRITE"]
    assert len(share.calls) == len({name for name, _ in share.calls}) == len(RULES) - 5


@pytest.mark.skipif(not _native.accelerated, reason="nothing is compiled")
def test_what_was_abandoned_while_it_was_done_is_not_given_back() -> None:
    """A log of writes begins, and has no patience: nothing is written, and the answer is kept for when it comes again."""
    rig, handover, late = CompiledRig(8), _native.handover.Handover(), dict[bytes, bytes]()
    assert isinstance(rig.device, _native.ring.SplitRing)
    sent = request(Opcode.UNLINK, b"name\0")
    rig.buffers[: len(sent)] = sent
    rig.driver.add([(BUFFERS, len(sent))], [(BUFFERS + 4096, OUT_HEADER_SIZE)])

    def answer(asked: bytes, room: int) -> bytes:
        assert (asked, room) == (sent, OUT_HEADER_SIZE)
        handover.abandon()
        return b"a" * OUT_HEADER_SIZE

    requests = _native.files.ShareRequests(_native.opened.OpenFiles())
    assert requests.serve_with(answer, late, rig.device, handover, 0, -1, -1, 0) == _native.handover.ABANDONED
    assert late == {sent: b"a" * OUT_HEADER_SIZE}
    assert rig.driver.collect() is None
    assert not any(rig.buffers[4096:])


@pytest.mark.parametrize("half", HALVES)
@pytest.mark.parametrize("name", [b"n", b"n" * 200])
def test_what_was_done_already_is_only_answered(share: StandIn, half: str, name: bytes) -> None:
    sent, made = request(Opcode.UNLINK, name + b"\0", unique=77), s.OutHeader(OUT_HEADER_SIZE, -errno.EPERM, 77).pack()
    with pytest.MonkeyPatch.context() as patched, guest_of(share) as guest:
        if half == "python":
            patched.setattr(FuseDevice, "compiled", lambda self: None)
        guest.init()
        late = guest.device._server.late
        late[sent] = made
        assert guest.ask(Opcode.RMDIR, b"name\0").error == 0
        assert guest.exchange(sent) == made
        assert (share.names.count("unlink"), share.names.count("rmdir"), late) == (0, 1, {})
        assert guest.exchange(sent) == s.OutHeader(OUT_HEADER_SIZE, 0, 77).pack()
        late[sent] = made
        guest.init()
        assert guest.exchange(sent) == s.OutHeader(OUT_HEADER_SIZE, 0, 77).pack()
        late[sent] = made
        guest.frontend.reset()
        assert guest.device._server.late == {}


@pytest.mark.skipif(not _native.accelerated, reason="nothing is compiled")
class TestOpenFiles:
    """The table itself."""

    def test_whoever_owns_a_file_is_kept_until_it_is_removed(self) -> None:
        files, gone = _native.opened.OpenFiles(), list[int]()

        class Owner:
            def __init__(self, number: int) -> None:
                self.number = number

            def __del__(self) -> None:
                gone.append(self.number)

        for number in range(1, 2001):
            files.add(number, 5, 3, Owner(number))
        assert gone == []
        files.remove(77)
        files.remove(77)
        files.remove(5000)
        assert gone == [77]
        files.clear()
        assert sorted(gone) == list(range(1, 2001))
        files.add(1, 5, 3, Owner(1))
        del files
        assert gone[2000:] == [1]

    def test_nobody_reads_what_nobody_reads(self) -> None:
        files = _native.opened.OpenFiles()
        files.add(1, 5, 3, object())
        assert (files.busy(), files.reads, files.bytes_read) == ([], 0, 0)


class Busy:
    """Compiled code that hangs."""

    reads, bytes_read = 3, 4096

    def __init__(self) -> None:
        self.now = [(1.0, 77)]

    def busy(self) -> list[tuple[float, int]]:
        return self.now


def test_p07_a_read_without_python_that_hangs_is_named_and_waited_for() -> None:
    busy, ended = Busy(), list[bool]()
    progress = Progress(busy)
    assert "READ of inode 77 for " in progress.finish(0.0, lambda: ended.append(True))
    progress.look()
    assert ended == []
    busy.now = []
    progress.look()
    assert ended == [True]
    assert progress.counts() == {"READ": 3, "bytes_read": 4096}
