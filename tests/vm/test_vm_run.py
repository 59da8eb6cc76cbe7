"""`vhu vm run`: commands in a guest, their output and their end, and that nothing outlives it."""

from __future__ import annotations

import os
import pty
import re
import select
import signal
import subprocess
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.cli.programs import VHU, environment, words

from .shares import ONCE

pytestmark = [pytest.mark.vm, pytest.mark.usefixtures("qemu"), pytest.mark.timeout(300), ONCE]
SECONDS = 240.0
DISK = 16 << 20


@pytest.fixture
def temporary() -> Iterator[Path]:
    """Where the command makes its temporary files."""
    with tempfile.TemporaryDirectory(prefix="vhu") as name:
        yield Path(name)


def vm(temporary: Path, *options: str, command: tuple[str, ...] = ()) -> subprocess.CompletedProcess[bytes]:
    """Run a command in a guest; nothing may stay behind, neither files nor processes."""
    done = subprocess.run(
        words(VHU, "vm", "run", *options, "--", *command),
        input=b"",
        capture_output=True,
        timeout=SECONDS,
        check=False,
        env=environment(TMPDIR=str(temporary)),
    )
    assert os.listdir(temporary) == []
    assert alive(temporary) == []
    assert b"Traceback" not in done.stderr
    return done


def alive(temporary: Path) -> list[str]:
    """The processes that have this folder in their command line."""
    found = []
    for path in Path("/proc").glob("[0-9]*/cmdline"):
        try:
            text = path.read_bytes().replace(b"\0", b" ").decode(errors="replace")
        except OSError:
            continue
        if str(temporary) in text:
            found.append(text)
    return found


def test_a_command_has_its_outputs_its_words_and_its_status(temporary: Path) -> None:
    work = 'printf "%s|" "$@"; seq 1 20000 | md5sum; echo wrong >&2; cat; echo again >/dev/stdout; exit 7'
    done = vm(temporary, command=("sh", "-c", work, "sh", "a b", "$HOME", "'"))
    digest = subprocess.run(["sh", "-c", "seq 1 20000 | md5sum"], capture_output=True, check=True).stdout
    assert done.returncode == 7, done.stderr
    assert done.stdout == b"a b|$HOME|'|" + digest + b"again\n"
    assert done.stderr == b"wrong\n"


def test_output_of_any_size_and_content_comes_whole(temporary: Path) -> None:
    done = vm(
        temporary,
        command=("sh", "-c", "dd if=/dev/urandom of=/f bs=1M count=4 2>/dev/null; md5sum </f >&2; cat /f"),
    )
    assert done.returncode == 0, done.stderr
    digest = subprocess.run(["md5sum"], input=done.stdout, capture_output=True, check=True).stdout
    assert (len(done.stdout), done.stderr) == (4 << 20, digest)


def test_a_disk_keeps_what_the_command_wrote(temporary: Path, tmp_path: Path) -> None:
    (disk := tmp_path / "disk").write_bytes(bytes(DISK))
    make = "mke2fs -b 4096 /dev/vda >/dev/null && mount /dev/vda /mnt && echo kept >/mnt/file"
    assert vm(temporary, "--blk", str(disk), command=("sh", "-c", make)).returncode == 0
    assert disk.read_bytes()[1024 + 56 :][:2] == b"\x53\xef"
    look = "mount /dev/vda /mnt && cat /mnt/file; nproc"
    done = vm(temporary, "--blk", str(disk), "--cpus", "2", "--memory", "256M", command=("sh", "-c", look))
    assert (done.returncode, done.stdout) == (0, b"kept\n2\n"), done.stderr


def test_a_guest_that_dies_is_told_from_a_command_that_fails(temporary: Path) -> None:
    done = vm(temporary, command=("sh", "-c", "echo c >/proc/sysrq-trigger; sleep 100"))
    assert (done.returncode, done.stdout) == (1, b"")
    assert b"sysrq triggered crash" in done.stderr
    assert done.stderr.endswith(b"before CMD did; try: vhu doctor\n")


def test_a_command_has_a_deadline_if_it_is_given_one(temporary: Path) -> None:
    done = vm(temporary, "--timeout", "1", command=("sleep", "1000"))
    assert (done.returncode, done.stdout) == (1, b"")
    assert done.stderr.splitlines()[-1] == b"vhu vm: not within 1 s: the end of CMD; try: vhu doctor"


def test_a_disk_that_is_in_use_is_said(temporary: Path, tmp_path: Path) -> None:
    (folder := tmp_path / "folder").mkdir()
    done = vm(temporary, "--blk", str(folder), command=("true",))
    assert done.returncode == 1
    assert b"vhu-blk: " in done.stderr
    assert done.stderr.splitlines()[-1].startswith(b"vhu vm: QEMU ended with 1 before CMD did")


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_ends_everything(temporary: Path, tmp_path: Path, number: signal.Signals) -> None:
    (disk := tmp_path / "disk").write_bytes(bytes(DISK))
    command = words(VHU, "vm", "run", "--blk", str(disk), "--", "sh", "-c", "echo running; sleep 1000")
    with subprocess.Popen(
        command, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, env=environment(TMPDIR=str(temporary))
    ) as process:
        try:
            assert process.stdout
            assert process.stdout.readline() == b"running\n"
            assert len(alive(temporary)) == 1
            process.send_signal(number)
            assert process.wait(SECONDS) == 130
        finally:
            process.kill()
    assert (alive(temporary), alive(disk), os.listdir(temporary)) == ([], [], [])


def test_without_a_command_there_is_a_shell_on_the_terminal(temporary: Path) -> None:
    user, terminal = pty.openpty()
    try:
        with subprocess.Popen(
            words(VHU, "vm", "run"), stdin=terminal, stdout=terminal, stderr=terminal, start_new_session=True,
            env=environment(TMPDIR=str(temporary)),
        ) as process:  # fmt: skip
            try:
                wait_for(user, rb"guest:\S+# ")
                os.write(user, b"echo be''gun; sleep 1000\r")
                wait_for(user, rb"\nbegun\r+\n")
                wait_for(user, rb"guest:\S+# ", typing=b"\x03")  # Ctrl-C is the guest's, and `sleep` has to be there
                os.write(user, b"echo $((6 * 7)); tty; exit 9\r")
                wait_for(user, rb"\n42\r+\n/dev/hvc0\r+\n")
                assert process.wait(SECONDS) == 9
            finally:
                process.terminate()
    finally:
        os.close(user)
        os.close(terminal)
    assert (alive(temporary), os.listdir(temporary)) == ([], [])


def wait_for(fd: int, pattern: bytes, *, typing: bytes = b"") -> None:
    """Read until the pattern has come; type something whenever nothing comes for a while."""
    heard, deadline = b"", time.monotonic() + SECONDS
    while not re.search(pattern, heard):
        left = max(0.0, deadline - time.monotonic())
        if select.select([fd], [], [], min(left, 0.5) if typing else left)[0]:
            heard += os.read(fd, 1 << 16)
        else:
            assert typing, heard
            assert left, heard
            os.write(fd, typing)
