"""The filter of system calls of the daemons that serve other devices than shares: all works with it, and little else."""

from __future__ import annotations

import json
import os
import random
import re
import signal
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from vhostuser import Disconnected, Frontend
from vhostuser.drivers.blk import FEATURES, BlockDriver
from vhostuser.drivers.console import ConsoleDriver
from vhostuser.drivers.pmem import FEATURES as OF_PMEM
from vhostuser.drivers.pmem import PmemDriver
from vhostuser.drivers.rng import RngDriver
from vhostuser.drivers.shm import ShmDriver
from vhostuser.queue import Queue
from vhostuser.sandbox import landlock
from vhostuser.sandbox.seccomp import Action
from vhostuser.virtio.block import SECTOR

from .programs import BLK, CONSOLE, FS, PMEM, RNG, SECONDS, SHM, Program, listening, one_line, run, serving, until, words
from .test_fs import state_of

STAND_IN = "tests.cli.device_stand_in"
FILTERED, FREE = "2", "0"
"""What /proc says of a process with a filter, and of one without."""
with_landlock = pytest.mark.skipif(not landlock.version(), reason="the kernel has no Landlock")


@pytest.fixture
def disk(place: Path) -> Path:
    path = place / "disk"
    path.write_bytes(random.Random(1).randbytes(256 * SECTOR))
    os.truncate(path, 2 << 20)
    return path


def filtered(back: Program) -> tuple[str, str]:
    """Whether a process has a filter, and can get no privileges."""
    return state_of(back.process.pid, "Seccomp"), state_of(back.process.pid, "NoNewPrivs")


# Each daemon does its work


def use_disk(front: Frontend) -> None:
    assert BlockDriver(front).read(0, 1) == random.Random(1).randbytes(SECTOR)


def use_memory(front: Frontend) -> None:
    driver = PmemDriver(front)
    driver.write(0, b"stored")
    driver.flush()


def use_randomness(front: Frontend) -> None:
    assert len(RngDriver(front).get(64)) == 64


def use_files(front: Frontend) -> None:
    driver = ShmDriver(front)
    driver.map(0, shm_offset=0, len=4096, fd_offset=4096, writable=True)
    front.shm[0].write(0, b"to the file")
    driver.unmap(shm_offset=0, len=4096)


def use_console(front: Frontend) -> None:
    ConsoleDriver(front, timeout=SECONDS).write(b"shown\n")


DEVICES = {
    BLK: (("--blk-file", "{disk}"), FEATURES, use_disk),
    PMEM: (("--image", "{disk}"), OF_PMEM, use_memory),
    RNG: ((), 0, use_randomness),
    SHM: (("--region", "0:64K", "--file", "{disk}:rw"), 0, use_files),
    CONSOLE: ((), 0, use_console),
}


def options_of(module: str, disk: Path) -> list[str]:
    return [each.format(disk=disk) for each in DEVICES[module][0]]


def use(front: Frontend, module: str) -> None:
    """Do what the device is for."""
    DEVICES[module][2](front)


@pytest.mark.parametrize("module", DEVICES)
def test_every_daemon_has_a_filter_by_default_serves_again_and_ends_cleanly(sock: Path, disk: Path, module: str) -> None:
    with listening(sock, *options_of(module, disk), "--reconnect", module=module) as back:
        for _ in range(2):
            with Frontend.connect(sock, wait=SECONDS, features=DEVICES[module][1]) as front:
                front.share_memory(4 << 20)
                use(front, module)
                assert filtered(back) == (FILTERED, "1")
                front.reset()
                use(front, module)
        back.signal(signal.SIGTERM)
        assert back.end() == 0
        assert " WARN " not in back.said
    assert not sock.exists()


@pytest.mark.parametrize("module", [BLK, SHM])
def test_no_daemon_has_one_if_that_is_said(sock: Path, disk: Path, module: str) -> None:
    with serving(sock, *options_of(module, disk), "--seccomp", "none", module=module) as back:
        with Frontend.connect(sock, wait=SECONDS, features=DEVICES[module][1]) as front:
            front.share_memory(4 << 20)
            use(front, module)
            assert filtered(back) == (FREE, "0")
        assert back.end() == 0


@pytest.mark.parametrize("module", DEVICES)
def test_help_has_the_values_of_virtiofsd(module: str) -> None:
    assert "--seccomp kill|log|trap|none" in run(module, "--help").stdout


def test_another_value_is_none() -> None:
    done = run(RNG, "--seccomp", "strict")
    assert done.returncode == 2
    assert "'strict' is none of none, kill, log, trap" in one_line(done.stderr)


@pytest.mark.parametrize("packed", [False, True], ids=["split", "packed"])
@pytest.mark.parametrize("way", ["native", "python", "pure"])
def test_a_disk_does_all_its_work_behind_the_filter(sock: Path, disk: Path, way: str, packed: bool) -> None:
    """By compiled code, which spins, and by Python; through memory that comes and goes, and another connection."""
    if way == "native":
        pytest.importorskip("vhostuser._native.block", exc_type=ImportError)
    options = ("--handler", "native" if way == "native" else "python", "--spin", "500", "--num-queues", "2")
    command = words(BLK, "--socket-path", sock, "--blk-file", disk, *options, "--reconnect")
    pure = "1" if way == "pure" else ""
    with (
        Program(command, VHOSTUSER_PURE=pure) as back,
        Frontend.connect(sock, wait=SECONDS, features=FEATURES, inflight=True, packed=packed) as front,
    ):
        front.share_memory(4 << 20)
        front.track_inflight(64)
        drivers = [BlockDriver(front, queue, 64, timeout=SECONDS) for queue in range(2)]
        for driver in drivers:
            work(driver)
        front.remove_memory(front.add_memory(2 << 20))
        drivers[0].write_many((at, bytes(SECTOR)) for at in range(64, 128))
        back.signal(signal.SIGKILL)
        back.end()
        with Program(command, VHOSTUSER_PURE=pure) as other:
            front.reconnect(sock, wait=SECONDS)
            work(drivers[1])
            assert filtered(other) == (FILTERED, "1")
            other.signal(signal.SIGTERM)
            assert other.end() == 0
    content = disk.read_bytes()
    assert content[: 8 * SECTOR] == random.Random(2).randbytes(8 * SECTOR)
    assert not any(content[8 * SECTOR : 128 * SECTOR])


def work(driver: BlockDriver) -> None:
    """Every request of a disk, and one that fails."""
    data = random.Random(2).randbytes(8 * SECTOR)
    driver.write(0, data)
    driver.discard(8, 56)
    driver.write_zeroes(16, 8)
    driver.write_zeroes(24, 8, unmap=True)
    driver.flush()
    assert driver.read(0, 16) == data + bytes(8 * SECTOR)
    assert driver.identify() == "disk"


def test_a_console_gives_its_terminal_back(sock: Path, place: Path) -> None:
    """And takes the pseudo terminal's link away, in another directory than the socket's."""
    (place / "links").mkdir()
    link = place / "links" / "console"
    with listening(sock, "--pty", "--pty-link", str(link), module=CONSOLE) as back:
        user = os.open(link, os.O_RDWR | os.O_NOCTTY)
        try:
            with Frontend.connect(sock, wait=SECONDS) as front:
                front.share_memory(1 << 20)
                os.write(user, b"typed\r")
                assert ConsoleDriver(front, timeout=SECONDS).read(SECONDS) == b"typed\r"
                assert filtered(back) == (FILTERED, "1")
        finally:
            os.close(user)
        assert back.end() == 0
    assert list(place.iterdir()) == [place / "links"]
    assert not link.is_symlink()


# What it does not let through


class Asked:
    """What the process of the stand-in can do."""

    def __init__(self, front: Frontend) -> None:
        front.share_memory(1 << 20)
        self.queue: Queue = front.start_queue(0, size=16)

    def ask(self, verb: str, *arguments: str | Path) -> object:
        data = self.queue.exchange(json.dumps([verb, *map(str, arguments)]).encode(), 1024, timeout=SECONDS)
        return json.loads(data.rstrip(b"\0 ") or "null")


@contextmanager
def asking(sock: Path) -> Iterator[Asked]:
    with Frontend.connect(sock, wait=SECONDS) as front:
        yield Asked(front)


FORBIDDEN = ("execve", "fork", "ptrace", "inet", "kill")
MADE = {"execve": "ENOENT", "fork": "forked", "inet": "made"}
"""What comes of them where they are made, and only logged."""


@pytest.mark.parametrize(("verb", "action"), [*((verb, "kill") for verb in FORBIDDEN), ("execve", "trap"), ("inet", "trap")])
def test_a_forbidden_call_is_the_end(sock: Path, verb: str, action: str) -> None:
    with serving(sock, "--seccomp", action, module=STAND_IN) as back:
        with asking(sock) as probe, pytest.raises(Disconnected):
            probe.ask(verb)
        assert back.process.wait(SECONDS) == -signal.SIGSYS
        assert (f"in {verb}" in back.said) == (action == "trap"), back.said


def test_forbidden_calls_are_made_if_they_are_only_to_be_logged(sock: Path) -> None:
    with serving(sock, "--seccomp", "log", module=STAND_IN) as back:
        with asking(sock) as probe:
            assert {verb: probe.ask(verb) for verb in MADE} == MADE
            assert filtered(back) == (FILTERED, "1")
        assert back.end() == 0


def test_nothing_is_opened_or_imported_and_that_is_an_error_only(sock: Path, file: Path) -> None:
    """A C library or Python may try to, and does without. Its traceback has no source."""
    with serving(sock, "--log-level", "debug", module=STAND_IN) as back:
        with asking(sock) as probe:
            assert probe.ask("open", file) == "EACCES"
            assert probe.ask("open", "/etc/passwd") == "EACCES"
            assert str(probe.ask("late")).startswith("cannot import smtplib")
            probe.ask("fail")
            assert probe.ask("open", file) == "EACCES"
        assert back.process.wait(SECONDS) == 0
        assert "LookupError: told to fail" in back.said
        assert re.search(r'device_stand_in.py", line \d+, in fail', back.said)
        assert "raise LookupError" not in back.said


@pytest.mark.parametrize("verb", ["rename", "remove"])
def test_a_socket_that_is_given_leaves_no_name_to_take_away(sock: Path, file: Path, verb: str) -> None:
    with serving(sock, module=STAND_IN) as back:
        with asking(sock) as probe, pytest.raises(Disconnected):
            probe.ask(verb, *([file, f"{file}.other"] if verb == "rename" else [file]))
        assert back.process.wait(SECONDS) == -signal.SIGSYS
    assert file.exists()


@with_landlock
def test_names_are_taken_away_in_the_sockets_directory_only(place: Path, sock: Path, file: Path) -> None:
    (place / "below").mkdir()
    with listening(place / "below" / "s", module=STAND_IN) as back:
        with asking(place / "below" / "s") as probe:
            assert probe.ask("remove", file) == "EACCES"
        assert back.end() == 0
    assert file.exists()
    assert not (place / "below" / "s").exists()


# What is said of it

PAGE = (Path(__file__).resolve().parents[2] / "docs/seccomp.md").read_text()


def test_the_page_names_all_daemons_and_actions_and_options_that_are_there() -> None:
    assert {name_of(module) for module in DEVICES} <= set(re.findall(r"vhu-[a-z]+", PAGE))
    assert set(re.findall(r"^\| `(\w+)` \|", PAGE, re.MULTILINE)) == {each.value for each in Action}
    named = set(re.findall(r"--[a-z][a-z-]*", PAGE))
    known = "".join(run(module, "--help").stdout for module in (CONSOLE, FS))
    assert named == {"--seccomp", "--socket-path", "--pty-link", "--fd", "--syslog"}
    assert all(f"{name} " in known for name in named)


def name_of(module: str) -> str:
    return f"vhu-{module.rpartition('.')[2]}"


# Where there can be none

REFUSING = """
import errno, sys
from vhostuser.sandbox.seccomp import ALLOW, ERRNO, INSTRUCTION
from vhostuser.sandbox.syscalls import number_of
from vhostuser.sandbox.system import filter_calls, machine, prctl
number = number_of("seccomp", machine())
rows = [(0x20, 0, 0, 0), (0x15, 0, 1, number), (0x06, 0, 0, ERRNO | int(sys.argv[1])), (0x06, 0, 0, ALLOW)]
prctl(38, 1)
if not filter_calls(b"".join(INSTRUCTION.pack(*row) for row in rows)):
    sys.exit("no filter")
from vhostuser.cli.rng import main
sys.exit(main(sys.argv[2:]))
"""
"""`vhu-rng` in a container that lets nobody filter."""


def test_a_filter_that_is_refused_is_one_line_and_no_start(sock: Path) -> None:
    with Program([sys.executable, "-c", REFUSING, "1", "--socket-path", str(sock)]) as back:
        assert back.end() == 1
        text = "vhu-rng: cannot filter system calls: Operation not permitted (EPERM); try: --seccomp none"
        assert one_line(back.said) == text
    assert not sock.exists()


def test_a_kernel_without_filters_is_one_line_and_served(sock: Path) -> None:
    with Program([sys.executable, "-c", REFUSING, "38", "--socket-path", str(sock)]) as back:
        with Frontend.connect(sock, wait=SECONDS) as front:
            front.share_memory(4 << 20)
            use(front, RNG)
        assert back.end() == 0
        assert back.said.count(" WARN  vhu-rng] there is no filter of system calls: the kernel has none\n") == 1


def test_a_signal_before_it_serves_ends_it(sock: Path) -> None:
    with listening(sock, module=RNG) as back:
        back.signal(signal.SIGTERM)
        assert back.end() == 0
    until(lambda: not sock.exists(), "the name is gone")
