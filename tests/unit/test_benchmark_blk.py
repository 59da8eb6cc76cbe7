"""The arithmetic of the benchmark of disks, and a short run of it: who gives wrong data is not fast but wrong."""

from __future__ import annotations

import mmap
import os
from collections.abc import Callable
from contextlib import ExitStack
from pathlib import Path

import blk
import pytest
from blk import BIG, IO_URING, MAIN_LOOP, NATIVE, PYTHON, QD1, QD32, Load, LoadFailed, Measured, Server, Unavailable

from tests.drivers.devices import Disk
from tests.vm.conftest import qemu
from vhostuser import DescriptorChain
from vhostuser.testing import listening, sparse_file

__all__ = ["qemu"]
FEW = (Load("few", "randread", 32, 4096, 300), Load("big", "read", 4, 1 << 20, 8))


def lines(**resident: int) -> list[str]:
    """A report in which io_uring takes 10 and the main loop 20 ns, ours 11 at one in flight and more at 32."""
    samples = {(MAIN_LOOP, load): [20.0, 20.0, 30.0] for load in blk.LOADS}
    samples |= {(IO_URING, load): [10.0, 10.0, 15.0] for load in blk.LOADS}
    samples |= {(PYTHON, QD1): [11.0, 11.0, 15.0], (PYTHON, QD32): [9.0, 9.5, 15.0], (PYTHON, BIG): [20.0, 40.0, 30.0]}
    return blk.report(Measured(samples, {PYTHON: 30 << 20} | resident, {NATIVE: "it knows no --handler"}))


def test_a_goal_is_met_or_missed_by_the_median_of_the_rounds() -> None:
    shown = [line for line in lines() if f": {PYTHON} against" in line]
    assert [line[:27] for line in shown] == [
        "  met   rate  1.82x >= 1.50",
        "  MISS  rate  0.91x >= 1.00",
        "  met   rate  2.11x >= 1.80",
        "  MISS  rate  1.05x >= 1.10",
        "  met   rate  1.00x >= 0.95",
        "  MISS  rate  0.50x >= 0.95",
    ]


def test_a_server_that_does_not_start_was_not_measured() -> None:
    shown = lines()
    assert f"  note  {NATIVE} did not start: it knows no --handler" in shown
    assert sum(line.startswith("  --    not measured") and NATIVE in line for line in shown) == 7


@pytest.mark.parametrize(("size", "word"), [(40 << 20, "met "), ((40 << 20) + 4096, "MISS")])
def test_memory_is_a_goal_too(size: int, word: str) -> None:
    (line,) = [line for line in lines(**{PYTHON: size}) if "resident" in line and f": {PYTHON}" in line]
    assert line.startswith(f"  {word}  40.0 MiB <= 40 MiB")


def test_what_is_shared_is_not_a_process_s_own_memory() -> None:
    before = blk.resident(os.getpid())
    grown = bytearray(b"x" * (32 << 20))
    assert before + (30 << 20) < blk.resident(os.getpid()) < before + (64 << 20)
    with sparse_file(64 << 20) as file, mmap.mmap(file.fileno(), 64 << 20) as shared:
        shared[:] = bytes(64 << 20)
        assert blk.resident(os.getpid()) < before + (64 << 20)
    del grown


def test_without_the_fetched_programs_that_is_the_one_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("VHOSTUSER_CACHE", str(tmp_path))
    (line,) = blk.lines_for_goals()
    assert line.startswith("  --    not measured  vhu-blk against qemu-storage-daemon: no QEMU in ")


@pytest.mark.vm
@pytest.mark.usefixtures("qemu")
class TestWithLibblkio:
    """What needs the programs that are fetched."""

    def test_every_server_that_starts_is_measured(self) -> None:
        measured = blk.interleaved(1, size=8 << 20, loads=FEW)
        names = {server.name for server in blk.servers()} - measured.missing.keys()
        assert {MAIN_LOOP, IO_URING, PYTHON} <= names
        assert measured.samples.keys() == {(name, load) for name in names for load in FEW}
        assert min(min(values) for values in measured.samples.values()) > 0
        assert all(1 << 20 < size < 200 << 20 for size in measured.resident.values())
        assert names == measured.resident.keys()

    def test_a_server_s_second_command_line_is_taken_if_it_does_not_know_the_first(self, tmp_path: Path) -> None:
        blk.make_file(tmp_path / "disk", 1 << 20)
        unknown = (*blk.OURS, "--no-such-option")
        with ExitStack() as opened:
            blk.start(Server("ours", (unknown, blk.OURS)), tmp_path / "s", tmp_path / "disk", opened)
        with ExitStack() as opened, pytest.raises(Unavailable, match="unrecognized arguments: --no-such-option"):
            blk.start(Server("ours", (unknown,)), tmp_path / "s", tmp_path / "disk", opened)

    @pytest.mark.parametrize(
        ("spoil", "text"),
        [
            (lambda chain: chain.write(bytes(4096) + b"\1"), "a request failed: Input/output error"),
            (lambda chain: chain.write(b"\1" * 4096 + b"\0"), "what came is not what is at"),
        ],
    )
    def test_an_error_and_wrong_data_are_no_result(self, spoil: Callable[[DescriptorChain], object], text: str) -> None:
        class Spoiled(Disk):
            queue_sizes = (256,)

            def process(self, queue: int, chain: DescriptorChain) -> None:
                spoil(chain)

        with listening(Spoiled()) as (path, _), pytest.raises(LoadFailed, match=text):
            blk.drive(blk.build_c(), FEW[0], Path(path))
