"""libblkio, a driver of block devices that needs no guest, against our back-end. It insists on memory slots."""

from __future__ import annotations

import json
import os
import random
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path

import blk
import pytest

from tests.drivers.devices import Disk
from tests.vm.conftest import give_up
from tests.vm.test_vhu_shm import running_back_end
from vhostuser.testing import DEADLINE, listening
from vhostuser.virtio.block import BlockRequest
from vhostuser.vm.tree import blkio_flags, blkio_sources, loaded

pytestmark = [pytest.mark.vm, pytest.mark.usefixtures("qemu")]

DRIVER = "virtio-blk-vhost-user"
SECTORS = 4096
LOADS = (
    blk.Load("randread-1", "randread", 1, 4096, 1_000),
    blk.Load("randread-32", "randread", 32, 4096, 10_000),
    blk.Load("randwrite-32", "randwrite", 32, 4096, 5_000),
    blk.Load("randwrite-128", "randwrite", 128, 512 << 3, 2_000),
    blk.Load("read-4", "read", 4, 1 << 20, 64),
)
CHECK = blk.Load("all of it", "read", 16, 4096, 4096)
"""Every block once, after the writes."""


@pytest.fixture(scope="module")
def programs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with blkio-bench and blkio-copy, which Debian ships as C sources."""
    if not shutil.which("gcc"):
        give_up("no gcc here to compile libblkio's programs")
    folder = tmp_path_factory.mktemp("blkio")
    for name in ("blkio-bench", "blkio-copy"):
        command = ["gcc", "-O1", "-pthread", "-o", str(folder / name), str(blkio_sources() / f"{name}.c"), *blkio_flags()]
        subprocess.run(command, check=True, timeout=60)
    return folder


@pytest.fixture
def disk() -> Disk:
    disk = Disk(SECTORS)
    disk.queue_sizes = (256,)
    disk.content[:] = random.Random(1).randbytes(len(disk.content))
    return disk


@pytest.fixture
def at(disk: Disk) -> Iterator[str]:
    with listening(disk) as (path, served):
        yield path
        assert served.error is None
        assert served.backend.counters.broken == 0


def run(program: Path, *arguments: str) -> str:
    """What one of libblkio's programs prints, which ends well."""
    command = [*loaded(program), *arguments]
    done = subprocess.run(command, capture_output=True, text=True, timeout=3 * DEADLINE, check=False)
    assert (done.returncode, done.stderr) == (0, "")
    return done.stdout


@pytest.mark.parametrize("direction", ["out", "in"])
def test_a_disk_is_copied_whole(programs: Path, disk: Disk, at: str, place: Path, direction: str) -> None:
    file = place / "image"
    file.write_bytes(content := random.Random(2).randbytes(len(disk.content)))
    inner = [f"--{'output' if direction == 'in' else 'input'}-blkio={DRIVER}", f"path={at}"]
    outer = [f"--{'input' if direction == 'in' else 'output'}-file={file}"]
    run(programs / "blkio-copy", *(outer + inner if direction == "in" else inner + outer))
    assert file.read_bytes() == bytes(disk.content)
    assert (file.read_bytes() == content) is (direction == "in")


def test_vhu_blk_takes_an_image_of_64_mib_and_gives_it_back(programs: Path, place: Path) -> None:
    content = random.Random(3).randbytes(64 << 20)
    (place / "image").write_bytes(content)
    (place / "disk").touch()
    (place / "copy").touch()
    os.truncate(place / "disk", len(content))
    path = place / "s"
    daemon = ["-m", "vhostuser.cli.blk", "--socket-path", str(path), "--blk-file", str(place / "disk"), "--reconnect"]
    with running_back_end(path, daemon):
        inner = [f"--output-blkio={DRIVER}", f"path={path}"]
        run(programs / "blkio-copy", f"--input-file={place / 'image'}", *inner)
        inner = [f"--input-blkio={DRIVER}", f"path={path}"]
        run(programs / "blkio-copy", *inner, f"--output-file={place / 'copy'}")
    assert (place / "disk").read_bytes() == content
    assert (place / "copy").read_bytes() == content


@pytest.mark.parametrize(("depth", "work"), [(1, "randwrite"), (32, "randread")])
def test_a_second_of_load_has_no_error(programs: Path, disk: Disk, at: str, depth: int, work: str) -> None:
    options = ["--runtime=1", f"--iodepth={depth}", f"--readwrite={work}"]
    said = json.loads(run(programs / "blkio-bench", *options, DRIVER, f"path={at}"))
    assert said["aggregate"]["kiops"] > 0
    kind = BlockRequest.IN if work == "randread" else BlockRequest.OUT
    assert disk.counts.keys() == {kind}
    assert disk.counts[kind] >= depth


@pytest.mark.parametrize("load", LOADS, ids=lambda load: load.name)
def test_vhu_blk_under_load_gives_what_is_there_and_fails_nothing(place: Path, load: blk.Load) -> None:
    """The driver looks at the data; it is bounded by requests, so that a busy machine only takes longer."""
    driver, path = driver_of_loads(), place / "s"
    blk.make_file(place / "disk", 16 << 20)
    daemon = ["-m", "vhostuser.cli.blk", "--socket-path", str(path), "--blk-file", str(place / "disk"), "--reconnect"]
    with running_back_end(path, daemon) as served:
        assert blk.drive(driver, load, path) > 0
        assert blk.drive(driver, CHECK, path) > 0
        assert "WARN" not in served.log


def driver_of_loads() -> Path:
    """The benchmark's own driver."""
    try:
        return blk.build_c()
    except blk.Unavailable as reason:
        give_up(str(reason))
        raise
