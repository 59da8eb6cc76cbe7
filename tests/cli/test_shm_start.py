"""How `vhu-shm` starts, or says why not: one line, and a status that is not 0."""

from __future__ import annotations

import json
import os
import socket
import subprocess
import sys
from pathlib import Path

import pytest

from vhostuser.testing import is_listened_on

from .programs import SHM, Program, attach, listening, one_line, run, serving, until, words

REGION = ("--region", "0:64M")
TYPES = {  # vhost-user.json
    *("9p", "balloon", "block", "caif", "console", "crypto", "gpu", "input", "net", "rng", "rpmsg", "rproc-serial"),
    *("scsi", "video", "vsock", "fs"),
}


@pytest.mark.parametrize("others", [(), ("--unknown", "--fd", "x"), ("--region", "nonsense", "--socket-path")])
def test_print_capabilities_ignores_all_else(others: tuple[str, ...]) -> None:
    done = run(SHM, *others, "--print-capabilities")
    assert done.returncode == 0
    assert done.stderr == ""
    assert json.loads(done.stdout)["type"] in TYPES


@pytest.mark.parametrize(
    ("arguments", "code", "text"),
    [
        ([], 2, "--region"),
        (["--region", "0"], 2, "'0' is not SHMID:SIZE"),
        (["--region", "256:4K"], 2, "shmid 256 is not below 256"),
        (["--region", "0:0"], 2, "no multiple of the page size"),
        (["--region", "0:100"], 2, "no multiple of the page size"),
        (["--region", "0:4X"], 2, "'4X' is no size"),
        (["--region", "0:-4096"], 2, "'-4096' is no size"),
        ([*REGION, *REGION], 2, "same shmid"),
        ([*REGION], 2, "neither --socket-path nor --fd"),
        ([*REGION, "--map", "0:FILE"], 2, "is not SHMID:OFFSET:FILE[:rw]"),
        ([*REGION, "--map", "0:0:"], 2, "is not SHMID:OFFSET:FILE[:rw]"),
        ([*REGION, "--num-queues", "0"], 2, "is not between 1 and 256"),
        ([*REGION, "--num-queues", "257"], 2, "is not between 1 and 256"),
        ([*REGION, "--fd", "-1"], 2, "argument --fd"),
        ([*REGION, "--fd", "99999999999999"], 2, "argument --fd"),
        ([*REGION, "--fd", "3", "--socket-path", "s"], 2, "not allowed with"),
        ([*REGION, "--once", "--reconnect"], 2, "not allowed with"),
        ([*REGION, "--sock", "s"], 2, "unrecognized arguments"),
        ([*REGION, "--socket-pth", "s"], 2, "did you mean --socket-path?"),
        ([*REGION, "--shmem-dialect", "19"], 2, "there are released (22), rust-vmm-0.16 (21), draft (20)"),
        ([*REGION, "--log-level", "loud"], 2, "there are off, error, warn, info, debug, trace"),
        (["--region", "0:64T", "--region", "1:64T", "--socket-path", "s"], 1, "passes what a process can reserve"),
    ],
)
def test_a_wrong_command_line_is_one_line(place: Path, arguments: list[str], code: int, text: str) -> None:
    done = run(SHM, *arguments, cwd=place)
    assert done.returncode == code
    assert text in one_line(done.stderr)
    assert done.stderr.startswith("vhu-shm: ")
    assert done.stdout == ""
    assert list(place.iterdir()) == []


@pytest.mark.parametrize(
    ("maps", "text"),
    [
        (["0:0:missing"], "cannot open missing: No such file or directory (ENOENT)"),
        (["0:0:odd"], "its size, 5000 bytes, is no multiple of the page size, 4096; try: truncate -s 8192"),
        (["0:0:empty"], "it is empty; try: truncate -s 4096"),
        (["0:0:."], "Is a directory (EISDIR)"),
        (["0:0:/dev/zero"], "it is no regular file"),
        (["0:0:fifo"], "it is no regular file"),
        (["1:0:file.bin"], "there is no such region; try: --region 1:SIZE"),
        (["0:7:file.bin"], "0x7 is not a multiple of the page size"),
        (["0:64M:file.bin"], "passes region 0's end 0x4000000"),
        (["0:0xfffffffffffff000:file.bin"], "wraps past 0x10000000000000000"),
        (["0:0:file.bin", "0:4K:file.bin"], "overlaps the mapping at 0x0 that ends at 0x2000"),
        (["0:0:evil\033[31m"], "evil\\x1b[31m"),
    ],
)
def test_a_file_that_cannot_be_mapped_is_one_line(place: Path, file: Path, maps: list[str], text: str) -> None:
    (place / "odd").write_bytes(bytes(5000))
    (place / "empty").touch()
    os.mkfifo(place / "fifo")
    options = [word for each in maps for word in ("--map", each)]
    done = run(SHM, "--socket-path", "s", *REGION, *options, cwd=place)
    assert done.returncode == 1
    assert text in one_line(done.stderr)
    assert not (place / "s").exists()


def test_p11_a_regular_file_is_never_unlinked(place: Path, file: Path) -> None:
    (place / "link").symlink_to(file)
    for name in ("file.bin", "link"):
        done = run(SHM, "--socket-path", place / name, *REGION)
        assert done.returncode == 1
        assert "cannot listen on" in one_line(done.stderr)
        assert (place / name).stat().st_size


def test_p11_a_live_server_keeps_its_socket(sock: Path) -> None:
    with listening(sock, *REGION) as first:
        done = run(SHM, "--socket-path", sock, *REGION)
        assert done.returncode == 1
        assert f"it is in use by pid {first.process.pid}" in one_line(done.stderr)
        with attach(sock) as front:
            front.event("ready")


def test_p11_a_stale_socket_is_replaced(sock: Path) -> None:
    with socket.socket(socket.AF_UNIX) as stale:
        stale.bind(str(sock))
    with listening(sock, *REGION), attach(sock) as front:
        front.event("ready")


@pytest.mark.parametrize("name", ["missing/s", "x" * 120])
def test_p11_a_path_that_does_not_work_is_one_line(place: Path, name: str) -> None:
    done = run(SHM, "--socket-path", place / name, *REGION)
    assert done.returncode == 1
    assert "cannot listen on" in one_line(done.stderr)
    assert list(place.iterdir()) == []


def test_p12_an_fd_that_is_no_socket_is_one_line() -> None:
    kinds = [("999", "Bad file descriptor (EBADF)"), ("0", "Socket operation on non-socket (ENOTSOCK)")]
    for fd, text in kinds:
        done = run(SHM, "--fd", fd, *REGION)
        assert done.returncode == 1
        assert text in one_line(done.stderr)


def test_p12_a_datagram_socket_is_one_line() -> None:
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as wrong:
        done = run(SHM, "--fd", str(wrong.fileno()), *REGION, pass_fds=[wrong.fileno()])
    assert done.returncode == 1
    assert "it is no Unix stream socket" in one_line(done.stderr)


def test_p12_a_connected_fd_is_served(sock: Path) -> None:
    with vhu_that_listens(sock) as front, socket.socket(socket.AF_UNIX) as ours:
        ours.connect(str(sock))
        with Program(words(SHM, "--fd", str(ours.fileno()), *REGION), pass_fds=[ours.fileno()]) as back:
            ours.close()
            front.event("ready")
            front.send("quit")
            assert (front.end(), back.end()) == (0, 0)


def vhu_that_listens(sock: Path) -> Program:
    front = attach(sock, "--listen")
    until(lambda: is_listened_on(sock), "attach --listen listens")
    return front


def test_a_listening_fd_is_served(sock: Path) -> None:
    with serving(sock, *REGION) as back, attach(sock) as front:
        front.event("ready")
        front.send("quit")
        assert (front.end(), back.end()) == (0, 0)


AS_SYSTEMD = """
import os, sys
os.dup2(int(sys.argv[1]), 3)
os.environ.update(LISTEN_PID=str(os.getpid()), LISTEN_FDS="1")
os.execv(sys.argv[2], sys.argv[2:])
"""


def test_without_an_address_the_socket_of_systemd_is_served(sock: Path) -> None:
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(str(sock))
        listener.listen(1)
        command = [sys.executable, "-c", AS_SYSTEMD, str(listener.fileno()), *words(SHM, *REGION)]
        with Program(command, pass_fds=[listener.fileno()]) as back, attach(sock) as front:
            front.event("ready")
            front.send("quit")
            assert (front.end(), back.end()) == (0, 0)


def test_p14_few_fds_are_enough(sock: Path, file: Path) -> None:
    options = ["--socket-path", str(sock), *REGION, "--map", f"0:0:{file}"]
    with Program(["sh", "-c", 'ulimit -n 64; exec "$@"', "sh", *words(SHM, *options)]) as back:
        until(lambda: is_listened_on(sock), "it listens")
        until(lambda: run("vhostuser", "info", sock).returncode == 0, "it serves")
        assert back.end() == 0


def test_p14_a_window_that_cannot_be_reserved_is_one_line(sock: Path) -> None:
    with serving(sock, "--region", "0:64G"):
        command = ["sh", "-c", 'ulimit -v 8000000; exec "$@"', "sh", *words("vhostuser", "attach", sock)]
        done = subprocess.run(command, capture_output=True, text=True, timeout=15, check=False, stdin=subprocess.DEVNULL)
    assert done.returncode == 1
    assert "ENOMEM" in one_line(done.stderr)


def test_help_names_the_exit_codes() -> None:
    done = run(SHM, "--help")
    assert done.returncode == 0
    assert "exit status: 0" in done.stdout
