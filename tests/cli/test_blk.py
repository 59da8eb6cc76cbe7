"""`vhu-blk`: how it starts or says why not, what a front-end finds, how it ends."""

from __future__ import annotations

import json
import os
import signal
import socket
from pathlib import Path

import pytest

from vhostuser import Disconnected, Frontend
from vhostuser.testing import is_listened_on
from vhostuser.virtio.block import HEADER, BlockFeature, BlockRequest

from .programs import BLK, Program, listening, one_line, run, serving, until, words

QUICK = 2.0
"""Seconds that a program may take to end ("Backend program conventions": as quickly as possible)."""
SIGNALS = [signal.SIGTERM, signal.SIGINT, signal.SIGHUP]
OK, IOERR = b"\0", b"\1"


def ask(front: Frontend, kind: int, data: bytes = b"", room: int = 0) -> bytes:
    """One request at sector 0, on a new queue."""
    front.share_memory(1 << 20)
    return front.start_queue(0, size=16).exchange(HEADER.pack(kind, 0, 0) + data, room + 1)


@pytest.mark.parametrize("others", [(), ("--unknown", "--fd", "x"), ("--blk-file",)])
def test_print_capabilities_ignores_all_else(others: tuple[str, ...]) -> None:
    done = run(BLK, *others, "--print-capabilities")
    assert (done.returncode, done.stderr) == (0, "")
    assert json.loads(done.stdout) == {"type": "block", "features": ["read-only", "blk-file"]}


def test_help_names_the_exit_codes() -> None:
    done = run(BLK, "--help")
    assert (done.returncode, done.stderr) == (0, "")
    for text in (
        "--blk-file FILE",
        "--read-only",
        "--num-queues",
        "--queue-size",
        "--handler",
        "--spin MICROSECONDS",
        "exit status: 0",
    ):
        assert text in done.stdout


@pytest.mark.parametrize(
    ("arguments", "code", "text"),
    [
        ([], 2, "--blk-file"),
        (["--blk-file", "file.bin"], 2, "neither --socket-path nor --fd is given; try: --socket-path /tmp/blk.sock"),
        (["--blk-file", "file.bin", "--fd", "3", "--socket-path", "s"], 2, "not allowed with"),
        (["--blk-file", "file.bin", "--once", "--reconnect"], 2, "not allowed with"),
        (["--blk-file", "file.bin", "--read-onyl"], 2, "did you mean --read-only?"),
        (["--blk-file", "file.bin", "--num-queues", "0"], 2, "is not between 1 and 256"),
        (["--blk-file", "file.bin", "--num-queues", "257"], 2, "is not between 1 and 256"),
        (["--blk-file", "file.bin", "--queue-size", "2"], 2, "2 is no power of two between 4 and 32768"),
        (["--blk-file", "file.bin", "--queue-size", "100"], 2, "100 is no power of two between 4 and 32768"),
        (["--blk-file", "file.bin", "--queue-size", "65536"], 2, "65536 is no power of two between 4 and 32768"),
        (["--blk-file", "file.bin", "--queue-size", "x"], 2, "'x' is no number"),
        (["--blk-file", "file.bin", "--handler", "rust"], 2, "invalid choice: 'rust'"),
        (["--blk-file", "file.bin", "--spin", "1000001"], 2, "is not between 0 and 1000000"),
        (["--blk-file", "file.bin", "--shmem-dialect", "released"], 2, "unrecognized arguments"),
        (
            ["--blk-file", "missing", "--socket-path", "s"],
            1,
            "cannot open missing: No such file or directory (ENOENT); try: ",
        ),
        (["--blk-file", ".", "--socket-path", "s"], 1, "Is a directory (EISDIR)"),
        (["--blk-file", "fifo", "--socket-path", "s"], 1, "it is neither a regular file nor a block device"),
        (["--blk-file", "empty", "--socket-path", "s"], 1, "it has 0 bytes, less than a sector; try: truncate -s 64M FILE"),
        (["--blk-file", "file.bin", "--socket-path", "missing/s"], 1, "cannot listen on"),
        (["--blk-file", "file.bin", "--fd", "999"], 1, "Bad file descriptor (EBADF)"),
    ],
)
def test_what_is_wrong_is_one_line(place: Path, file: Path, arguments: list[str], code: int, text: str) -> None:
    (place / "empty").touch()
    os.mkfifo(place / "fifo")
    before = set(place.iterdir())
    done = run(BLK, *arguments, "--log-level", "error", cwd=place)
    assert done.returncode == code
    assert text in one_line(done.stderr)
    assert done.stderr.startswith("vhu-blk: ")
    assert done.stdout == ""
    assert set(place.iterdir()) == before


def test_a_file_that_is_served_is_not_served_twice(place: Path, sock: Path, file: Path) -> None:
    with listening(sock, "--blk-file", str(file), module=BLK):
        for options in ((), ("--read-only",)):
            done = run(BLK, "--blk-file", file, "--socket-path", place / "other", "--log-level", "error", *options)
            assert done.returncode == 1
            assert f"cannot serve {file}: it is locked by another process that uses it; try: " in one_line(done.stderr)
    assert not (place / "other").exists()


def test_read_only_ones_share_a_file(place: Path, sock: Path, file: Path) -> None:
    options = ("--blk-file", str(file), "--read-only")
    with listening(sock, *options, module=BLK), listening(place / "other", *options, module=BLK):
        for path in (sock, place / "other"):
            with Frontend.connect(path) as front:
                assert ask(front, BlockRequest.IN, room=512) == file.read_bytes()[:512] + OK


def test_what_is_written_is_in_the_file(sock: Path, file: Path) -> None:
    data, rest = os.urandom(1024), file.read_bytes()[1024:]
    with serving(sock, "--blk-file", str(file), module=BLK) as back:
        with Frontend.connect(sock) as front:
            assert ask(front, BlockRequest.OUT, data) == OK
        assert back.end() == 0
        assert f" INFO  vhu-blk] serving {file}, 8192 bytes, read-write\n" in back.said
    assert file.read_bytes() == data + rest


def test_read_only_is_read_only(sock: Path, file: Path) -> None:
    file.chmod(0o444)
    before = file.read_bytes()
    with serving(sock, "--blk-file", str(file), "--read-only", module=BLK), Frontend.connect(sock) as front:
        assert front.offered[0] >> BlockFeature.RO & 1
        assert ask(front, BlockRequest.OUT, bytes(512)) == IOERR
    assert file.read_bytes() == before


def test_the_queues_are_those_that_were_asked_for(sock: Path, file: Path) -> None:
    options = ("--blk-file", str(file), "--num-queues", "3", "--queue-size", "32")
    with serving(sock, *options, module=BLK), Frontend.connect(sock) as front:
        assert front.queue_count == 3
        assert front.config(12, 4) == (30).to_bytes(4, "little")
        assert front.config(34, 2) == (3).to_bytes(2, "little")


def test_a_native_handler_that_is_not_there_is_a_usage_error(place: Path, file: Path) -> None:
    options = ("--blk-file", file, "--socket-path", place / "s", "--handler", "native")
    done = run(BLK, *options, VHOSTUSER_PURE="1")
    assert done.returncode == 2
    text = "--handler native needs the compiled half, which was not built or is switched off by VHOSTUSER_PURE"
    assert one_line(done.stderr) == f"vhu-blk: {text}; try: --handler python"


@pytest.mark.parametrize("options", [("--handler", "python"), ("--spin", "0"), ("--spin", "1000")], ids=" ".join)
def test_who_handles_requests_makes_no_difference(sock: Path, file: Path, options: tuple[str, ...]) -> None:
    data, rest = os.urandom(1024), file.read_bytes()[1024:]
    with serving(sock, "--blk-file", str(file), *options, module=BLK) as back:
        with Frontend.connect(sock) as front:
            assert ask(front, BlockRequest.OUT, data) == OK
        assert back.end() == 0
    assert file.read_bytes() == data + rest


def test_an_odd_size_is_warned_of(sock: Path, file: Path) -> None:
    os.truncate(file, 1000)
    with listening(sock, "--blk-file", str(file), module=BLK) as back:
        assert " WARN  vhu-blk] " in back.said
        assert "the last 488 are no whole sector" in back.said


@pytest.mark.parametrize("number", SIGNALS, ids=lambda number: number.name)
def test_p07_p08_a_signal_ends_it(place: Path, sock: Path, file: Path, number: signal.Signals) -> None:
    with listening(sock, "--blk-file", str(file), "--reconnect", module=BLK) as back, Frontend.connect(sock) as front:
        assert ask(front, BlockRequest.FLUSH) == OK
        back.signal(number)
        assert back.end(QUICK) == 0
        with pytest.raises(Disconnected):
            front.serve(QUICK)
    assert list(place.iterdir()) == [file]


def test_a_connected_fd_is_served(file: Path) -> None:
    ours, theirs = socket.socketpair()
    with theirs:
        options = words(BLK, "--fd", str(theirs.fileno()), "--blk-file", file)
        back = Program(options, pass_fds=[theirs.fileno()])
    with back:
        with Frontend(ours) as front:
            assert ask(front, BlockRequest.IN, room=512) == file.read_bytes()[:512] + OK
        assert back.end() == 0


def test_reconnect_serves_one_after_the_other(sock: Path, file: Path) -> None:
    with serving(sock, "--blk-file", str(file), "--reconnect", module=BLK) as back:
        for _ in range(3):
            with Frontend.connect(sock, wait=15) as front:
                assert ask(front, BlockRequest.IN, room=512) == file.read_bytes()[:512] + OK
        back.signal(signal.SIGTERM)
        assert back.end(QUICK) == 0


def test_a_front_end_that_breaks_the_protocol_is_exit_code_3(sock: Path, file: Path) -> None:
    with serving(sock, "--blk-file", str(file), module=BLK) as back:
        with socket.socket(socket.AF_UNIX) as front:
            front.connect(str(sock))
            front.sendall(bytes(12))
        assert back.end() == 3


def test_p10_it_serves_with_no_standard_fds_at_all(sock: Path, file: Path) -> None:
    options = words(BLK, "--socket-path", sock, "--blk-file", file)
    before = file.read_bytes()
    with Program(["sh", "-c", 'exec "$@" 0<&- 1>&- 2>&-', "sh", *options]) as back:
        until(lambda: is_listened_on(sock) or back.process.poll() is not None, "it listens")
        with Frontend.connect(sock, wait=15) as front:
            assert ask(front, BlockRequest.IN, room=512) == before[:512] + OK
        assert back.end() == 0
    assert file.read_bytes() == before
