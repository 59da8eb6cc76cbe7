"""`vhu demo` with its second act: a file in a Linux guest through DAX, and what is left when it ends, in whatever way."""

from __future__ import annotations

import os
import signal
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from tests.cli.programs import VHU, environment, words
from tests.unit.test_readme import block
from vhostuser.cli import demo_vm
from vhostuser.cli.demo_stage import Stage
from vhostuser.cli.outcome import CommandError

from .test_vm_run import SECONDS, alive, temporary

__all__ = ["temporary"]
from .shares import ONCE

pytestmark = [pytest.mark.vm, pytest.mark.usefixtures("qemu"), pytest.mark.timeout(300), ONCE]
PROOFS = 29
SIZE = (5 << 20) + 1
README = block("text", "FUSE_READ")
"""The second act, as it stands there."""


@pytest.fixture
def film(tmp_path: Path) -> Path:
    """A file of a user, with a name that a shell would not take as it is, and an odd size."""
    path = tmp_path / "it's a $(film)"
    path.write_bytes(os.urandom(SIZE))
    path.chmod(0o444)
    return path


@contextmanager
def demo(temporary: Path, film: Path) -> Iterator[subprocess.Popen[str]]:
    """`vhu demo` with a file; its temporary files are in a folder of their own."""
    with subprocess.Popen(
        words(VHU, "demo", "--file", film), stdout=subprocess.PIPE, text=True, env=environment(TMPDIR=str(temporary))
    ) as process:
        try:
            yield process
        finally:
            process.kill()


def test_a_file_of_the_users_is_read_in_a_guest_through_dax(temporary: Path, film: Path) -> None:
    before = film.read_bytes(), film.stat()
    with demo(temporary, film) as process:
        printed, _ = process.communicate(timeout=SECONDS)
        assert process.returncode == 0
    lines = [line.strip() for line in printed.splitlines()]
    shown = README.replace("photo.raw, 64 MiB", f"{film.name}, {SIZE} bytes").replace("photo.raw", film.name)
    for line in shown.replace("FUSE_SETUPMAPPING 32", "FUSE_SETUPMAPPING 3").splitlines():
        assert [each for each in lines if each.startswith(line.strip().partition(" host's: ")[0])], line
    act = lines[lines.index("9. A Linux guest boots, with the directories of two files shared by two vhu-fs") :]
    assert act[1].startswith("Linux ")
    assert "ok it has mounted both: read /read virtiofs rw,relatime,dax=inode 0 0" in act
    assert f"10. It reads {film.name}, {SIZE} bytes, through the window" in act
    assert sum(line.startswith("ok its SHA-256 there is the host's: ") for line in act) == 1
    assert "ok the host's notes.raw has them at 4096: b'by mmap!', and nothing else" in act
    assert f"ok {film.name}: FUSE_READ 0, FUSE_SETUPMAPPING 3" in act
    assert "ok notes.raw: FUSE_WRITE 0, FUSE_SETUPMAPPING 1" in act
    assert act[-3].startswith(f"{PROOFS} proofs hold, ")
    assert act[-1].startswith("and as a page: ")
    assert sum(line.startswith("ok ") for line in lines) == PROOFS
    assert (film.read_bytes(), film.stat().st_mtime_ns) == (before[0], before[1].st_mtime_ns)
    assert (os.listdir(temporary), alive(temporary)) == ([], [])


def test_a_share_without_dax_fails_the_proof_and_nothing_is_left(
    temporary: Path, film: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    honest = demo_vm.Daemon

    def without(folder: Path, shared: Path, name: str, *options: str) -> demo_vm.Daemon:
        return honest(folder, shared, name)

    monkeypatch.setattr(demo_vm, "Daemon", without)
    monkeypatch.setenv("TMPDIR", str(temporary))
    with pytest.raises(CommandError, match=r"this proof failed: the guest's page cache grew by \d{4} KiB"):
        demo_vm.act_two(Stage(temporary), film)
    assert "FAILED the guest's page cache grew by" in capfd.readouterr().out
    assert alive(temporary) == []


def test_the_second_act_has_a_deadline(temporary: Path, film: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(demo_vm, "PATIENCE", 0.1)
    monkeypatch.setattr(demo_vm, "SLOWEST", 1 << 40)
    with pytest.raises(CommandError, match="the second act failed"):
        demo_vm.act_two(Stage(temporary), film)
    assert alive(temporary) == []


@pytest.mark.parametrize("number", [signal.SIGTERM])
def test_a_signal_in_the_second_act_ends_all(temporary: Path, film: Path, number: signal.Signals) -> None:
    with demo(temporary, film) as process:
        assert process.stdout
        assert any(line.startswith("   Linux ") for line in process.stdout)
        assert alive(temporary)
        process.send_signal(number)
        assert process.wait(SECONDS) == 130
    assert (os.listdir(temporary), alive(temporary)) == ([], [])


def test_the_environment_keeps_the_cache() -> None:
    """Else these tests would show the first act only."""
    assert environment().get("VHOSTUSER_CACHE") == os.environ.get("VHOSTUSER_CACHE")
