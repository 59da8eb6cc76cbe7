"""`vhu drive`, against a disk in memory and a device that gives bytes."""

from __future__ import annotations

import json
import os
import random
import signal
import subprocess
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.drivers.devices import ID, SECTORS, Answering, Disk
from vhostuser import DescriptorChain
from vhostuser.testing import DEADLINE, listening
from vhostuser.virtio.block import SECTOR, BlockFeature, BlockRequest

from .programs import SECONDS, VHU, Program, environment, one_line, run, until, words


@pytest.fixture
def disk() -> Disk:
    return Disk()


@pytest.fixture
def at(disk: Disk) -> Iterator[str]:
    """The socket of the disk."""
    with listening(disk) as (path, _):
        yield path


def drive(*arguments: str | Path, typed: bytes = b"") -> subprocess.CompletedProcess[bytes]:
    """Run `vhu drive` with bytes in and out."""
    command = words(VHU, "drive", *arguments)
    return subprocess.run(command, input=typed, capture_output=True, timeout=SECONDS, check=False, env=environment())


def told(*arguments: str | Path, typed: bytes = b"") -> str:
    """What a command prints, which ends well."""
    done = drive(*arguments, typed=typed)
    assert (done.returncode, done.stderr) == (0, b"")
    return done.stdout.decode()


def test_sectors_are_read_as_they_are(disk: Disk, at: str) -> None:
    assert drive("blk", at, "read", "3", "2").stdout == bytes(disk.content[3 * SECTOR : 5 * SECTOR])
    assert drive("blk", at, "read", "0x0", str(SECTORS)).stdout == bytes(disk.content)
    shown = json.loads(told("blk", at, "read", "--json", "3", "2"))
    assert shown == {"sector": 3, "count": 2, "data": disk.content[3 * SECTOR : 5 * SECTOR].hex()}


def test_more_than_a_piece_is_read_and_written_whole(place: Path) -> None:
    sectors = 4097  # two pieces and one sector
    disk = Disk(sectors)
    with listening(disk) as (at, _):
        (place / "file").write_bytes(random.Random(1).randbytes(sectors * SECTOR))
        assert told("blk", at, "write", "0", place / "file") == f"{sectors} sectors written at 0\n"
        assert drive("blk", at, "read", "0", str(sectors)).stdout == (place / "file").read_bytes() == bytes(disk.content)


def test_sectors_are_written_from_a_file_or_standard_input(disk: Disk, at: str, place: Path) -> None:
    (place / "file").write_bytes(b"A" * 3 * SECTOR)
    assert told("blk", at, "write", "7", place / "file") == "3 sectors written at 7\n"
    assert json.loads(told("blk", at, "write", "20", "-", "--json", typed=b"B" * SECTOR)) == {"sector": 20, "count": 1}
    assert disk.content[6 * SECTOR : 11 * SECTOR].count(b"A") == 3 * SECTOR
    assert disk.content[20 * SECTOR : 21 * SECTOR] == b"B" * SECTOR
    assert told("blk", at, "flush") == "flushed\n"
    assert told("blk", at, "discard", "7", "3") == "3 sectors discarded at 7\n"
    assert json.loads(told("blk", at, "discard", "20", "1", "--json")) == {"sector": 20, "count": 1}
    assert disk.ranges == [(7, 3, 0), (20, 1, 0)]
    assert disk.counts == {BlockRequest.OUT: 2, BlockRequest.FLUSH: 1, BlockRequest.DISCARD: 2}


def test_info_tells_what_the_device_is(at: str) -> None:
    assert json.loads(told("blk", at, "info", "--json")) == {
        "capacity": SECTORS * SECTOR,
        "sectors": SECTORS,
        "block_size": 4096,
        "queues": 2,
        "read_only": False,
        "features": ["BLK_SIZE", "DISCARD", "FLUSH", "MQ", "WRITE_ZEROES"],
        "id": ID.decode(),
    }
    shown = told("blk", at, "info")
    assert f"capacity:   128 KiB, {SECTORS} sectors of 512 bytes\n" in shown
    assert f"id:         {ID.decode()}\n" in shown


def test_info_of_a_device_without_a_name_goes_on() -> None:
    def refuse(chain: DescriptorChain) -> None:
        chain.write(bytes(chain.writable_size - 1) + b"\2")

    with listening(Answering(refuse)) as (at, _):
        assert json.loads(told("blk", at, "info", "--json"))["id"] is None


@pytest.mark.parametrize("depth", [1, 40])
def test_bench_counts_what_it_reads(disk: Disk, at: str, depth: int) -> None:
    found = json.loads(told("blk", at, "bench", "--seconds", "0.1", "--depth", str(depth), "--json"))
    assert found["requests"] == disk.counts[BlockRequest.IN] >= 1
    assert (found["depth"], found["seconds"] >= 0.1) == (depth, True)
    assert found["requests_per_second"] == pytest.approx(found["requests"] / found["seconds"], rel=0.01)
    assert "reads of 4 KiB a second" in told("blk", at, "bench", "--seconds", "0.1")


def test_random_bytes_come_as_many_as_were_asked_for() -> None:
    sent = bytearray()

    def some(chain: DescriptorChain) -> None:
        sent.extend(data := os.urandom(min(1000, chain.writable_size)))
        chain.write(data)

    with listening(Answering(some)) as (at, _):
        assert drive("rng", at, "get", "4K").stdout == sent
        assert len(sent) == 4096
        del sent[:]
        assert json.loads(told("rng", at, "get", "5", "--json")) == {"count": 5, "data": sent.hex()}


# What ends otherwise


@pytest.mark.parametrize(
    ("arguments", "text"),
    [
        ([], "required: DEVICE, SOCKET, ACTION"),
        (["tape", "s", "read"], "argument DEVICE: invalid choice: 'tape'"),
        (["tape", "s", "read"], "console"),
        (["--json", "console", "s", "read"], "a console has no action; try: vhu drive console SOCKET"),
        (["blk", "s"], "required: ACTION"),
        (["blk", "s", "get", "4"], "blk has no action 'get': there are info, read, write, flush, discard, bench"),
        (["blk", "s", "read", "4"], "read takes SECTOR COUNT"),
        (["blk", "s", "flush", "4"], "flush takes no argument"),
        (["blk", "s", "read", "-1", "4"], "-1"),
        (["blk", "s", "read", "x", "4"], "read SECTOR: 'x' is no number"),
        (["blk", "s", "read", "0", "0"], "read COUNT: 0 is not between 1 and 4294967295"),
        (["blk", "s", "bench", "--depth", "0"], "argument --depth: 0 is not between 1 and"),
        (["rng", "s", "get", "much"], "get N: 'much' is no size"),
    ],
)
def test_a_wrong_command_line_is_one_line_and_exit_code_2(arguments: list[str], text: str) -> None:
    done = run(VHU, "drive", *arguments)
    assert (done.returncode, done.stdout) == (2, "")
    assert text in one_line(done.stderr)


def failed(*arguments: str | Path, typed: bytes = b"") -> tuple[int, str]:
    """The exit code of a command that fails, and its one line."""
    done = drive(*arguments, typed=typed)
    assert done.stdout == b""
    return done.returncode, one_line(done.stderr.decode())


def test_a_no_of_the_device_is_exit_code_1(at: str) -> None:
    assert failed("blk", at, "read", str(SECTORS), "1") == (1, f"vhu drive: IN sector {SECTORS} was answered with IOERR")


def test_what_can_not_be_written_is_exit_code_1(disk: Disk, at: str, place: Path) -> None:
    code, text = failed("blk", at, "write", "0", place / "nothing")
    assert (code, text) == (1, f"vhu drive: {place}/nothing: No such file or directory (ENOENT)")
    code, text = failed("blk", at, "write", "0", "-", typed=bytes(513))
    assert (code, text) == (1, "vhu drive: - does not end with a whole sector; try: pad it to a multiple of 512 bytes")
    assert disk.counts == {}


def test_a_feature_that_the_device_lacks_is_exit_code_1() -> None:
    with listening(Disk(8, BlockFeature.RO)) as (at, _):
        code, text = failed("blk", at, "flush")
        assert code == 1
        assert "flush needs feature FLUSH, which was not offered" in text


def test_nobody_there_is_exit_code_3(sock: Path) -> None:
    code, text = failed("blk", sock, "info")
    assert code == 3
    assert "try: start the back-end first" in text


def test_a_device_that_does_not_answer_is_exit_code_3() -> None:
    go = threading.Event()
    with listening(Answering(lambda chain: go.wait(DEADLINE))) as (at, _):
        code, text = failed("rng", at, "get", "1", "--timeout", "0.1")
        go.set()
    assert (code, text) == (3, "vhu drive: queue 0: no answer within 0.1 s")


def test_a_device_that_gives_no_random_byte_is_exit_code_3() -> None:
    with listening(Answering(lambda chain: None)) as (at, _):
        code, text = failed("rng", at, "get", "1")
    assert (code, text) == (3, "vhu drive: the device was asked for 1 random bytes and gave none")


def test_a_disk_that_is_too_small_for_a_bench_is_exit_code_1() -> None:
    with listening(Disk(7)) as (at, _):
        assert failed("blk", at, "bench") == (1, "vhu drive: a bench needs 8 sectors, the device has 7")


def test_an_interrupt_ends_a_bench_at_once(disk: Disk, at: str) -> None:
    with Program(words(VHU, "drive", "blk", at, "bench", "--seconds", "600")) as bench:
        until(lambda: disk.counts.get(BlockRequest.IN), "it reads")
        bench.signal(signal.SIGINT)
        assert bench.end() == 130


def test_output_that_nobody_reads_ends_it_quietly(at: str) -> None:
    reader, writer = os.pipe()
    os.close(reader)
    with subprocess.Popen(
        words(VHU, "drive", "blk", at, "read", "0", "8"), stdout=writer, stderr=subprocess.PIPE
    ) as process:
        os.close(writer)
        _, said = process.communicate(timeout=SECONDS)
    assert (process.returncode, said) == (0, b"")
