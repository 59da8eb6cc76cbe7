"""What holds for every daemon as a process: how it ends, what it survives, where it refuses to start."""

from __future__ import annotations

import os
import random
import signal
import socket
import subprocess
import sys
from pathlib import Path

import pytest

from vhostuser import Disconnected, Frontend
from vhostuser.drivers.fs import FsDriver
from vhostuser.drivers.fuse import FuseSession
from vhostuser.drivers.pmem import FEATURES, PmemDriver
from vhostuser.protocol.framing import Frame
from vhostuser.protocol.numbers import NEED_REPLY, VERSION, FrontendRequest
from vhostuser.protocol.payloads import U64, VringState
from vhostuser.testing import is_listened_on, message, usage, wait_until
from vhostuser.virtio.block import HEADER, BlockRequest

from .programs import BLK, FS, PMEM, RNG, SECONDS, SHM, Program, listening, one_line, run, serving, until, words

DAEMONS = (SHM, BLK, RNG, PMEM, FS)
every = pytest.mark.parametrize("module", DAEMONS)
LOST = "import os, sys; fd = int(sys.argv[1]); os.dup2(fd, 1); os.dup2(fd, 2); os.execv(sys.argv[2], sys.argv[2:])"


def options_of(module: str, file: Path) -> tuple[str, ...]:
    """What a daemon can't do without."""
    if module == PMEM:
        image = file.with_name(f"{file.stem}.image")
        image.touch()
        os.truncate(image, 2 << 20)
        return ("--image", str(image))
    if module == FS:
        (shared := file.with_name("shared")).mkdir(exist_ok=True)
        (shared / "file").write_text("of the host")
        return ("--shared-dir", str(shared), "--sandbox", "none", "--dax-window", "64M")
    return {SHM: ("--region", "0:64M"), BLK: ("--blk-file", str(file)), RNG: ()}[module]


def connect(sock: Path, module: str, *, wait: float = SECONDS) -> Frontend:
    """A front-end for the driver of that device."""
    return Frontend.connect(sock, wait=wait, features=FEATURES if module == PMEM else 0)


def name_of(module: str) -> str:
    return f"vhu-{module.rpartition('.')[2]}"


def use(module: str, front: Frontend, file: Path) -> None:
    """One request, if the device takes some."""
    front.share_memory(4 << 20)
    if module == PMEM:
        return PmemDriver(front).flush()
    if module == FS:
        assert b"".join(FsDriver(FuseSession(front)).read("file")) == b"of the host"
        return None
    queue = front.start_queue(0, size=16)
    if module == BLK:
        assert queue.exchange(HEADER.pack(BlockRequest.IN, 0, 0), 513) == file.read_bytes()[:512] + b"\0"
    elif module == RNG:
        assert len(queue.exchange(b"", 32)) == 32
    return None


# Ends

LOADED = """
import os, sys
from vhostuser import Frontend
from vhostuser.virtio.block import HEADER
front = Frontend.connect(sys.argv[1], wait=10)
files = [open(os.devnull) for _ in range(64)]
front.share_memory(4 << 20)
queue = front.start_queue(0, size=256)
print("ready", flush=True)
while True:
    for _ in range(60):
        queue.submit([HEADER.pack(0, 0, 0)], [512, 1])
    queue.notify()
    while queue.in_flight:
        queue.completions()
"""
"""A front-end that never stops asking, with 64 open files."""


def loading(sock: Path) -> subprocess.Popen[bytes]:
    front = subprocess.Popen([sys.executable, "-c", LOADED, str(sock)], stdout=subprocess.PIPE, stderr=subprocess.DEVNULL)
    assert front.stdout is not None
    assert front.stdout.readline() == b"ready\n"
    return front


def killed(front: subprocess.Popen[bytes]) -> None:
    front.kill()
    front.communicate(timeout=SECONDS)


@pytest.mark.parametrize("module", [BLK, RNG])
def test_p05_the_front_end_is_killed_under_load(sock: Path, file: Path, module: str) -> None:
    """All that it held is given back, and the next one is served."""
    with listening(sock, *options_of(module, file), "--reconnect", module=module) as back:
        with connect(sock, module) as front:
            use(module, front, file)
            held = usage(back.process.pid)
        for _ in range(3):
            killed(loading(sock))
            with connect(sock, module) as front:
                use(module, front, file)
                wait_until(lambda: usage(back.process.pid) == held, "all else is given back", within=SECONDS)
        back.signal(signal.SIGTERM)
        assert back.end() == 0
    assert not sock.exists()


@pytest.mark.parametrize("module", [BLK, RNG])
def test_p05_a_daemon_with_a_connected_fd_ends_well_when_its_front_end_is_killed(
    sock: Path, file: Path, module: str
) -> None:
    with serving(sock, *options_of(module, file), module=module) as back:
        killed(loading(sock))
        assert back.end() == 0


@pytest.mark.parametrize(("module", "number"), [(BLK, signal.SIGTERM), (RNG, signal.SIGTERM), (BLK, signal.SIGHUP)])
def test_p07_p08_a_signal_ends_it_under_load(sock: Path, file: Path, module: str, number: signal.Signals) -> None:
    with listening(sock, *options_of(module, file), "--reconnect", module=module) as back:
        front = loading(sock)
        try:
            back.signal(number)
            assert back.end() == 0
        finally:
            killed(front)
    assert not sock.exists()


@every
def test_p08_other_signals_do_what_they_do_to_any_program(sock: Path, file: Path, module: str) -> None:
    """SIGPIPE nothing, SIGUSR1 its default, and no traceback."""
    assert "SIGPIPE is ignored" in run(module, "--help").stdout
    with listening(sock, *options_of(module, file), "--reconnect", module=module) as back:
        back.signal(signal.SIGPIPE)
        with connect(sock, module) as front:
            back.signal(signal.SIGPIPE)
            use(module, front, file)
            back.signal(signal.SIGUSR1)
            assert back.end() == -signal.SIGUSR1
            with pytest.raises(Disconnected):
                front.serve(SECONDS)


@pytest.mark.parametrize(("module", "broken"), [(BLK, "full"), (BLK, "gone"), (RNG, "full")])
def test_p09_p10_it_serves_though_its_log_can_not_be_written(sock: Path, file: Path, module: str, broken: str) -> None:
    command = words(module, "--socket-path", sock, *options_of(module, file), "--log-level", "debug")
    reader, writer = os.pipe()
    os.close(reader)
    full = os.open("/dev/full", os.O_WRONLY | os.O_CLOEXEC)
    try:
        fd = full if broken == "full" else writer
        with Program([sys.executable, "-c", LOST, str(fd), *command], pass_fds=[fd]) as back:
            until(lambda: is_listened_on(sock), "it listens")
            with connect(sock, module) as front:
                use(module, front, file)
            assert back.end() == 0
    finally:
        os.close(writer)
        os.close(full)


# Starts


@pytest.mark.parametrize("path", ["missing/s", "x" * 120, "/proc/s", "file.bin", "link", "."])
def test_p11_a_path_that_does_not_work_is_one_line_and_stays(place: Path, file: Path, path: str) -> None:
    (place / "link").symlink_to(file)
    before = {each: each.lstat() for each in place.iterdir()}
    done = run(BLK, "--socket-path", place / path, *options_of(BLK, file), "--log-level", "error")
    assert done.returncode == 1
    assert "cannot listen on" in one_line(done.stderr)
    assert {each: each.lstat() for each in place.iterdir()} == before


@pytest.mark.parametrize("module", [BLK, RNG, PMEM])
def test_p11_a_live_server_keeps_its_socket_and_a_stale_one_is_replaced(
    place: Path, sock: Path, file: Path, module: str
) -> None:
    with socket.socket(socket.AF_UNIX) as stale:
        stale.bind(str(sock))
    with listening(sock, *options_of(module, file), module=module) as first:
        other = place / "other.bin"
        other.write_bytes(file.read_bytes())
        done = run(module, "--socket-path", sock, *options_of(module, other), "--log-level", "error")
        assert done.returncode == 1
        assert f"it is in use by pid {first.process.pid}" in one_line(done.stderr)
        with connect(sock, module) as front:
            use(module, front, file)


@pytest.mark.parametrize("module", [BLK, PMEM, FS])
def test_p12_an_fd_that_does_not_work_is_one_line(sock: Path, file: Path, module: str) -> None:
    rest = (*options_of(module, file), "--log-level", "error")
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as wrong:
        cases = [
            (("--fd", "999"), 1, "Bad file descriptor (EBADF)"),
            (("--fd", "0"), 1, "Socket operation on non-socket (ENOTSOCK)"),
            (("--fd", str(wrong.fileno())), 1, "it is no Unix stream socket"),
            (("--fd", "3", "--socket-path", str(sock)), 2, "not allowed with"),
            (("--fd", "-1"), 2, "argument --fd"),
        ]
        for words_, code, text in cases:
            done = run(module, *words_, *rest, pass_fds=[wrong.fileno()])
            assert (done.returncode, done.stdout) == (code, "")
            assert text in one_line(done.stderr)
    assert not sock.exists()


@pytest.mark.parametrize("module", [BLK, PMEM, FS])
def test_p13_a_second_front_end_does_not_disturb_the_first(sock: Path, file: Path, module: str) -> None:
    with serving(sock, *options_of(module, file), "--reconnect", module=module):
        with connect(sock, module) as first:
            second = run("vhostuser", "info", sock, "--timeout", "0.2")
            assert second.returncode == 3
            assert "no other front-end uses it" in one_line(second.stderr)
            use(module, first, file)
        with connect(sock, module) as third:
            use(module, third, file)


@every
@pytest.mark.parametrize("limit", ["-n 64", "-v 1000000"])
def test_p14_little_of_all_is_enough(sock: Path, file: Path, module: str, limit: str) -> None:
    command = words(module, "--socket-path", sock, *options_of(module, file))
    with Program(["sh", "-c", f'ulimit {limit}; exec "$@"', "sh", *command]) as back:
        until(lambda: is_listened_on(sock) or back.process.poll() is not None, "it listens")
        with connect(sock, module) as front:
            use(module, front, file)
        assert back.end() == 0


WITHOUT_CAPABILITIES = """
import ctypes, os, sys
libc, DROP = ctypes.CDLL(None), 24
for capability in range(64):
    libc.prctl(DROP, capability, 0, 0, 0)
os.execv(sys.argv[1], sys.argv[1:])
"""
"""What root may do besides is lost with the exec; who is not root has nothing to lose."""


@every
def test_p14_no_privilege_is_needed(sock: Path, file: Path, module: str) -> None:
    command = words(module, "--socket-path", sock, *options_of(module, file))
    with Program([sys.executable, "-c", WITHOUT_CAPABILITIES, *command]) as back:
        until(lambda: is_listened_on(sock) or back.process.poll() is not None, "it listens")
        status = Path(f"/proc/{back.process.pid}/status").read_text()
        assert "CapEff:\t0000000000000000\n" in status
        with connect(sock, module) as front:
            use(module, front, file)
        assert back.end() == 0


def test_p14_a_front_end_without_memfds_says_so_and_may_try_again(
    sock: Path, file: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*_: object) -> int:
        raise OSError(38, os.strerror(38), "memfd")

    with listening(sock, *options_of(BLK, file), module=BLK), connect(sock, BLK) as front:
        with monkeypatch.context() as patched:
            patched.setattr(os, "memfd_create", refuse)
            with pytest.raises(OSError, match="Function not implemented"):
                front.share_memory(1 << 20)
        use(BLK, front, file)


# Floods and torn connections


SCRIPT = b"".join(
    message(request, body, flags=flags)
    for request, body, flags in (
        (FrontendRequest.GET_FEATURES, None, VERSION),
        (FrontendRequest.GET_PROTOCOL_FEATURES, None, VERSION),
        (FrontendRequest.SET_OWNER, None, VERSION),
        (FrontendRequest.SET_FEATURES, U64(1 << 32), VERSION),
        (FrontendRequest.SET_VRING_NUM, VringState(0, 16), VERSION | NEED_REPLY),
    )
)


@pytest.mark.parametrize("module", [BLK, PMEM])
def test_p17_connections_that_are_torn_off_at_any_byte_leave_nothing(sock: Path, file: Path, module: str) -> None:
    dice = random.Random(17)
    with listening(sock, *options_of(module, file), "--reconnect", "--log-level", "error", module=module) as back:
        with connect(sock, module) as front:
            use(module, front, file)
        idle = None
        for at in range(150):
            with socket.socket(socket.AF_UNIX) as front:
                front.connect(str(sock))
                front.sendall(SCRIPT[: dice.randrange(len(SCRIPT))])
            if at == 10:
                with connect(sock, module) as front:
                    use(module, front, file)
                idle = usage(back.process.pid)
        with connect(sock, module) as front:
            use(module, front, file)
            assert idle is not None
        wait_until(
            lambda: all(now <= then for now, then in zip(usage(back.process.pid), idle, strict=True)),
            "nothing is left",
            within=SECONDS,
        )
        back.signal(signal.SIGTERM)
        assert back.end() == 0


@pytest.mark.parametrize("module", [BLK, RNG, PMEM, FS])
def test_p20_a_flood_is_a_few_short_plain_lines(sock: Path, file: Path, module: str) -> None:
    with serving(sock, *options_of(module, file), module=module) as back:
        with socket.socket(socket.AF_UNIX) as front:
            front.connect(str(sock))
            for number in range(50):
                front.sendall(Frame(0x1B5B + number, VERSION, b"\033[31m\n\r" * 20).pack() * 100)
        assert back.end() == 0
        lines = back.said.splitlines()
        assert 0 < len(lines) < 60
        assert max(map(len, lines)) <= 512
        assert "\033" not in back.said
        assert all(name_of(module) in line for line in lines)
