"""`vhu-shm` behind QEMU, with the command lines that the README shows."""

from __future__ import annotations

import os
import re
import shlex
import subprocess
import tempfile
import time
from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path
from typing import IO, Final

import pytest

from vhostuser.testing import is_listened_on

from .lab import MIB, PAGE, SECONDS, TOP, check_well, make_file, python
from .machine import QTestMachine, generic_device

pytestmark = [pytest.mark.vm, pytest.mark.usefixtures("qemu")]
README: Final = TOP / "README.md"
DEVICE: Final = "vhost-user-test-device-pci,virtio-id=26"
"""What the README has as `-device`, beside the chardev. QEMU warns without the configuration space below, but works."""
QUIET_DEVICE: Final = f"{DEVICE},config_size=64"


class Shm:
    """A back-end program that runs, and what it has said."""

    def __init__(self, process: subprocess.Popen[bytes], said: IO[bytes]) -> None:
        self.process, self._said = process, said

    @property
    def log(self) -> str:
        """All that it has said so far."""
        return os.pread(self._said.fileno(), 1 << 20, 0).decode(errors="replace")

    def wait_listening(self, path: Path) -> None:
        """Wait until it listens."""
        deadline = time.monotonic() + SECONDS
        while not is_listened_on(path):
            if self.process.poll() is not None or time.monotonic() > deadline:
                raise RuntimeError(f"it does not listen; it has said: {self.log}")
            time.sleep(0.002)

    def end(self) -> int:
        """SIGTERM, and wait; gives the exit code."""
        self.process.terminate()
        return self.process.wait(SECONDS)


@contextmanager
def shm_and_qemu(*options: str, device: str = QUIET_DEVICE) -> Iterator[tuple[QTestMachine, Shm]]:
    """`vhu-shm` with these options and a QEMU whose driver is ready. Both must be well in the end."""
    with tempfile.TemporaryDirectory(prefix="vhu") as folder:
        path = Path(folder) / "shm.sock"
        with running_shm(path, ["--socket-path", str(path), *options]) as shm:
            with QTestMachine(path, device=device, seconds=SECONDS) as machine:
                machine.bring_up()
                machine.exchange(0, b"anything", 0)
                yield machine, shm
                check_well(machine)
            assert shm.process.wait(SECONDS) == 0, shm.log
            assert "Traceback" not in shm.log


def running_shm(path: Path, arguments: Sequence[str]) -> AbstractContextManager[Shm]:
    """`vhu-shm` with these arguments, which listens at `path`."""
    return running_back_end(path, ["-m", "vhostuser.cli.shm", *arguments])


@contextmanager
def running_back_end(path: Path, arguments: Sequence[str]) -> Iterator[Shm]:
    """Python with these arguments, which listens at `path`."""
    with tempfile.TemporaryFile("a+b") as said:
        process = subprocess.Popen([*python(), *arguments], stdin=subprocess.DEVNULL, stdout=said, stderr=said)
        try:
            shm = Shm(process, said)
            shm.wait_listening(path)
            yield shm
        finally:
            process.kill()  # does nothing if it has ended
            process.wait(SECONDS)


@pytest.mark.parametrize(("device", "warned"), [(DEVICE, True), (QUIET_DEVICE, False)], ids=["plain", "with-config"])
def test_a_file_is_in_the_region_as_soon_as_the_driver_is_ready(tmp_path: Path, device: str, warned: bool) -> None:
    content = make_file(tmp_path / "file", 2 * MIB)
    with shm_and_qemu("--region", "0:64M", "--map", f"0:0:{tmp_path / 'file'}", device=device) as (machine, shm):
        assert ("supports VHOST_USER_PROTOCOL_F_CONFIG but QEMU does not" in machine.stderr) == warned
        assert machine.shm_sizes == {0: 64 * MIB}
        assert machine.read_shm(0, 0, 2 * MIB) == content
        assert f"mapped {tmp_path / 'file'} at 0x0 of region 0, {2 * MIB} bytes, read-only" in shm.log


def test_files_go_to_their_regions_and_writes_to_their_files(tmp_path: Path) -> None:
    content = make_file(tmp_path / "a", PAGE, 1)
    make_file(tmp_path / "b", PAGE, 2)
    options = [
        "--region",
        "0:1M",
        "--region",
        "1:1M",
        "--map",
        f"0:4096:{tmp_path / 'a'}",
        "--map",
        f"1:0:{tmp_path / 'b'}:rw",
    ]
    with shm_and_qemu(*options) as (machine, _):
        assert machine.read_shm(0, 0, 2 * PAGE) == bytes(PAGE) + content
        machine.write_shm(1, 0, b"from the guest")
        assert (tmp_path / "b").read_bytes().startswith(b"from the guest")


def test_a_stop_or_a_reset_later_the_file_is_there_again(tmp_path: Path) -> None:
    content = make_file(tmp_path / "file", PAGE)
    with shm_and_qemu("--region", "0:1M", "--map", f"0:0:{tmp_path / 'file'}") as (machine, shm):
        machine.stop()
        machine.cont()
        machine.exchange(0, b"anything", 0)
        assert machine.read_shm(0, 0, PAGE) == content
        machine.system_reset()
        assert shm.log.count("mapped /") == 1
        machine.bring_up()
        machine.exchange(0, b"anything", 0)
        assert machine.read_shm(0, 0, PAGE) == content
        assert shm.log.count("mapped /") == 2


def test_sigterm_ends_it_cleanly_and_qemu_lives(tmp_path: Path) -> None:
    content = make_file(tmp_path / "file", PAGE)
    with shm_and_qemu("--region", "0:1M", "--map", f"0:0:{tmp_path / 'file'}") as (machine, shm):
        assert shm.end() == 0
        check_well(machine)
        assert machine.read_shm(0, 0, PAGE) == content


def test_it_ends_with_qemu(tmp_path: Path) -> None:
    make_file(tmp_path / "file", PAGE)
    with shm_and_qemu("--region", "0:1M", "--map", f"0:0:{tmp_path / 'file'}") as (machine, shm):
        assert machine.quit() == 0
        assert shm.process.wait(SECONDS) == 0


def test_a_file_that_shrank_is_left_out_with_the_reason(tmp_path: Path) -> None:
    content = make_file(tmp_path / "kept", PAGE)
    make_file(tmp_path / "shrinks", 2 * PAGE)
    options = ["--map", f"0:0:{tmp_path / 'shrinks'}", "--map", f"0:64K:{tmp_path / 'kept'}"]
    with shm_and_qemu("--region", "0:1M", *options) as (machine, shm):
        machine.system_reset()
        os.truncate(tmp_path / "shrinks", PAGE)
        machine.bring_up()
        machine.exchange(0, b"anything", 0)
        assert "the file has 0x1000 bytes, the mapping needs 0x2000" in shm.log
        assert machine.read_shm(0, 0, PAGE) == bytes(PAGE)
        assert machine.read_shm(0, 1 << 16, PAGE) == content


@pytest.mark.parametrize(
    ("dialect", "diagnosis"),
    [("20", "did not acknowledge SHMEM (bit 20)"), ("21", "acknowledged bit 21 but never asked for the shared memory")],
)
def test_an_older_dialect_is_diagnosed(tmp_path: Path, dialect: str, diagnosis: str) -> None:
    make_file(tmp_path / "file", PAGE)
    options = ("--region", "0:1M", "--map", f"0:0:{tmp_path / 'file'}", "--shmem-dialect", dialect)
    with shm_and_qemu(*options) as (machine, shm):
        assert machine.shm_sizes == {}
        assert diagnosis in shm.log
        assert "try --shmem-dialect released" in shm.log


def test_the_commands_of_the_readme(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """As they stand there, but for the programs' paths and QEMU's accelerator: here the test is the guest."""
    monkeypatch.chdir(tmp_path)
    content = make_file(tmp_path / "photo.raw", 16 * MIB)
    block = re.search(r"^(vhu-shm[^\n]*) &\n(qemu-system-x86_64 .*?)\n```", README.read_text(), re.MULTILINE | re.DOTALL)
    assert block
    shm, machine = shlex.split(block[1])[1:], shlex.split(block[2].replace("\\\n", ""))[1:]
    with running_shm(Path("shm.sock"), shm), QTestMachine("shm.sock", arguments=machine) as qemu:
        qemu.bring_up()
        qemu.exchange(0, b"anything", 0)
        assert qemu.read_shm(0, 0, 16 * MIB) == content
        check_well(qemu)


def test_the_ten_line_device_of_the_readme(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    content = make_file(tmp_path / "picture.raw", 2 * MIB)
    (script,) = re.findall(r"^```python\n([^`]*class Gallery.*?)^```", README.read_text(), re.MULTILINE | re.DOTALL)
    Path("gallery.py").write_text(script)
    device = generic_device(queues=1, queue_size=256, config_size=0)
    with running_back_end(Path("gallery.sock"), ["gallery.py"]), QTestMachine("gallery.sock", device=device) as qemu:
        qemu.bring_up()
        assert qemu.exchange(0, (4 * MIB).to_bytes(8, "little"), 1) == bytes(1)
        assert qemu.read_shm(0, 4 * MIB, 2 * MIB) == content
        check_well(qemu)
