"""`vhu-pmem` and `vhu drive pmem`: a file as memory, by two programs."""

from __future__ import annotations

import json
import os
import signal
from collections.abc import Iterator
from pathlib import Path

import pytest

from vhostuser import Frontend
from vhostuser.drivers.pmem import FEATURES, PmemDriver

from .programs import VHU, listening, one_line, run, serving

PMEM = "vhostuser.cli.pmem"
SIZE = 2 << 20


@pytest.fixture
def image(place: Path) -> Path:
    path = place / "image"
    path.write_bytes(b"the first bytes")
    os.truncate(path, SIZE)
    return path


@pytest.fixture
def at(place: Path, image: Path) -> Iterator[Path]:
    """The socket of a `vhu-pmem`."""
    with listening(place / "s", "--image", str(image), "--reconnect", module=PMEM):
        yield place / "s"


@pytest.mark.parametrize("others", [(), ("--unknown", "--fd", "x")])
def test_print_capabilities_ignores_all_else(others: tuple[str, ...]) -> None:
    done = run(PMEM, *others, "--print-capabilities")
    assert (done.returncode, done.stderr) == (0, "")
    assert json.loads(done.stdout) == {"type": "rpmsg"}


@pytest.mark.parametrize(
    ("arguments", "code", "text"),
    [
        (["--image", "."], 1, "cannot open .: Is a directory (EISDIR); try: check --image"),
        (["--image", "."], 1, "vhu-pmem: "),
        (["--image", ".", "--read-only"], 1, "it is no regular file; try: another FILE in --image"),
        (["--socket-path", "s"], 2, "the following arguments are required: --image"),
        (["--image", "x", "--readonly"], 2, "did you mean --read-only?"),
    ],
)
def test_what_is_wrong_is_one_line(place: Path, arguments: list[str], code: int, text: str) -> None:
    done = run(PMEM, *arguments, cwd=place)
    assert done.returncode == code
    assert text in one_line(done.stderr)


def test_a_size_that_is_no_power_of_two_is_refused_with_what_to_do(place: Path, image: Path) -> None:
    os.truncate(image, 3 << 20)
    done = run(PMEM, "--image", image, "--socket-path", place / "s")
    assert done.returncode == 1
    assert "its size, 3145728 bytes, is no power of two" in one_line(done.stderr)
    assert "try: truncate -s 4194304 FILE, or --read-only" in done.stderr
    assert image.stat().st_size == 3 << 20


def test_without_a_socket_it_says_so(image: Path) -> None:
    done = run(PMEM, "--image", image)
    assert done.returncode == 2
    assert "neither --socket-path nor --fd is given; try: --socket-path /tmp/pmem.sock" in done.stderr


def test_p07_a_signal_ends_it_with_a_live_mapping(sock: Path, image: Path) -> None:
    with listening(sock, "--image", str(image), module=PMEM) as back, Frontend.connect(sock, features=FEATURES) as front:
        front.share_memory(1 << 20)
        driver = PmemDriver(front)
        back.signal(signal.SIGTERM)
        assert back.end() == 0
        assert driver.read(0, 15) == b"the first bytes"  # a front-end keeps what is mapped
    assert not sock.exists()


def test_a_front_end_that_goes_ends_it(sock: Path, image: Path) -> None:
    with serving(sock, "--image", str(image), module=PMEM) as back:
        with Frontend.connect(sock, features=FEATURES) as front:
            front.share_memory(1 << 20)
            PmemDriver(front).flush()
        assert back.end() == 0


def test_bytes_go_in_and_out(at: Path, image: Path) -> None:
    assert run(VHU, "drive", "pmem", at, "read", "4", "5").stdout == "first"
    said = run(VHU, "drive", "pmem", at, "write", "4K", "-", typed="from a guest")
    assert (said.stdout, said.stderr) == ("12 bytes written at 4096, and flushed\n", "")
    assert image.read_bytes()[4096:].startswith(b"from a guest\0")
    shown = run(VHU, "drive", "pmem", at, "read", "0x1000", "4", "--json")
    assert json.loads(shown.stdout) == {"offset": 4096, "count": 4, "data": b"from".hex()}
    assert run(VHU, "drive", "pmem", at, "flush").stdout == "flushed\n"


def test_more_than_a_piece_is_written_and_read_whole(at: Path, image: Path, place: Path) -> None:
    content = bytes(range(251)) * 6000
    (place / "file").write_bytes(content)
    done = run(VHU, "drive", "pmem", at, "write", "1", place / "file", "--json")
    assert json.loads(done.stdout) == {"offset": 1, "count": len(content)}
    assert image.read_bytes()[1:].startswith(content)
    shown = run(VHU, "drive", "pmem", at, "read", "1", str(len(content)), "--json")
    assert bytes.fromhex(json.loads(shown.stdout)["data"]) == content


def test_info_says_what_it_is(at: Path) -> None:
    assert run(VHU, "drive", "pmem", at, "info").stdout.splitlines() == [
        "size:       2 MiB",
        "mapped:     2 MiB, read-write",
    ]
    done = run(VHU, "drive", "pmem", at, "info", "--json")
    assert json.loads(done.stdout) == {"size": SIZE, "mapped": SIZE, "writable": True}


def test_beyond_the_end_is_a_no(at: Path) -> None:
    done = run(VHU, "drive", "pmem", at, "read", "2M", "1")
    assert done.returncode == 1
    assert "passes its end 0x200000" in one_line(done.stderr)


def test_a_read_only_image_is_served_and_says_no_to_a_flush(place: Path, image: Path) -> None:
    before = image.read_bytes()
    with listening(place / "s", "--image", str(image), "--read-only", "--reconnect", module=PMEM):
        assert run(VHU, "drive", "pmem", place / "s", "read", "0", "15").stdout == "the first bytes"
        done = run(VHU, "drive", "pmem", place / "s", "write", "0", "-", typed="changed")
        assert done.returncode == 1
        assert "FLUSH was answered with 0xffffffff" in one_line(done.stderr)
    assert image.read_bytes() == before


def test_help_says_how_qemu_takes_it_and_names_the_exit_codes() -> None:
    done = run(PMEM, "--help")
    assert done.returncode == 0
    assert "virtio-id=27,num_vqs=1,config_size=16" in done.stdout
    assert "exit status: 0" in done.stdout
