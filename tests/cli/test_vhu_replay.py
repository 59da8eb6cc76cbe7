"""`vhu replay`: a recorded session against the same back-end, against another one, and against what is none."""

from __future__ import annotations

import json
import socket
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from tests.interop.peers import storage_daemon
from tests.trace.recording import messages, recorded_at
from tests.vm.conftest import qemu
from vhostuser import Frontend
from vhostuser.drivers.blk import FEATURES, BlockDriver
from vhostuser.testing import DEADLINE, wait_until
from vhostuser.trace.capture import create_capture
from vhostuser.trace.event import Event, Message

from .programs import BLK, VHU, Program, listening, one_line, run, words

__all__ = ["qemu"]
SHM = ("--region", "0:64M", "--reconnect")


def record(back_end: Path, file: Path, use: Callable[[Frontend], object]) -> list[Event]:
    """A session with who listens at `back_end`, in a capture."""
    with recorded_at(back_end) as (ours, events), Frontend(ours, features=FEATURES) as frontend:
        use(frontend)
    write(file, events)
    return events


def write(file: Path, events: list[Event]) -> None:
    capture = create_capture(file)
    for event in events:
        capture.write(event)
    capture.close()


def look_at(frontend: Frontend) -> None:
    """All that a driver does but requests, which no replay repeats."""
    frontend.share_memory(1 << 20)
    driver = BlockDriver(frontend, size=16)
    assert driver.capacity
    frontend.stop_queue(0)


def map_one(frontend: Frontend) -> None:
    frontend.share_memory(1 << 20)
    frontend.start_queue(0, size=16)
    wait_until(lambda: bool(_mapped(frontend)), "the file is mapped")


def _mapped(frontend: Frontend) -> int:
    frontend.serve(0.01)
    return len(frontend.shm[0].mappings)


@pytest.fixture
def capture(place: Path) -> Path:
    """Where to record to."""
    return place / "c.pcapng"


@pytest.fixture
def disk(place: Path) -> Path:
    path = place / "disk"
    path.write_bytes(bytes(1 << 20))
    return path


@contextmanager
def vhu_blk(sock: Path, disk: Path) -> Iterator[Program]:
    with listening(sock, "--blk-file", disk, "--reconnect", module=BLK) as program:
        yield program


@pytest.mark.parametrize("name", ["c.pcapng", "c.jsonl"])
def test_a_disk_is_the_same_again(sock: Path, disk: Path, place: Path, name: str) -> None:
    capture = place / name
    with vhu_blk(sock, disk):
        events = record(sock, capture, look_at)
        done = run(VHU, "replay", capture, "--as", "front-end", sock)
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout == f"{len(messages(events))} messages, no differences\n"


def test_another_disk_is_the_difference(sock: Path, disk: Path, place: Path, capture: Path) -> None:
    with vhu_blk(sock, disk):
        record(sock, capture, look_at)
    other, elsewhere = place / "other", place / "t"
    other.write_bytes(bytes(2 << 20))
    with vhu_blk(elsewhere, other):
        done = run(VHU, "replay", capture, "--as", "front-end", elsewhere)
        ignored = run(VHU, "replay", capture, "--as", "front", elsewhere, "--ignore", "payload")
        told = run(VHU, "replay", capture, "--as", "front-end", elsewhere, "--json")
    assert done.returncode == told.returncode == 1
    difference, total = done.stdout.splitlines()
    assert ": GET_CONFIG payload recorded 0008000000000000" in difference
    assert ", now 0010000000000000" in difference
    assert total.endswith(" messages, 1 difference")
    assert ignored.returncode == 0
    found, summed = map(json.loads, told.stdout.splitlines())
    assert difference.startswith(f"message {found['index']}: {found['name']} {found['field']} recorded {found['recorded']}")
    assert summed["differences"] == 1


def test_a_region_is_the_same_again_and_a_change_is_shown(sock: Path, file: Path, place: Path, capture: Path) -> None:
    with listening(sock, *SHM, "--map", f"0:0x2000:{file}"):
        record(sock, capture, map_one)
        same = run(VHU, "replay", capture, "--as", "front-end", sock)
    elsewhere = place / "t"
    with listening(elsewhere, *SHM, "--map", f"0:0x3000:{file}"):
        other = run(VHU, "replay", capture, "--as", "front-end", elsewhere)
    assert (same.returncode, same.stderr) == (0, "")
    assert other.returncode == 1
    difference, _ = other.stdout.splitlines()
    assert difference.endswith(": SHMEM_MAP shm_offset recorded 0x2000, now 0x3000")


def test_the_front_end_maps_the_same_again(sock: Path, file: Path, place: Path, capture: Path) -> None:
    """The back-end is the capture's: with --files the front-end sees what was mapped then."""
    with listening(sock, *SHM, "--map", f"0:0x2000:{file}"):
        record(sock, capture, map_one)
    elsewhere = place / "t"
    ignored = [word for field in ("user_addr", "descriptor", "used", "available") for word in ("--ignore", field)]
    with Program(words(VHU, "replay", capture, "--as", "back-end", elsewhere, "--files", *ignored)) as back_end:
        with Frontend.connect(elsewhere, wait=DEADLINE, features=FEATURES) as frontend:
            map_one(frontend)
            assert frontend.shm[0].read(0x2000, 16) == file.read_bytes()[:16]
        back_end.process.wait(DEADLINE)
        assert (back_end.process.returncode, back_end.said) == (0, "")
        assert back_end.line().endswith(" messages, no differences")
    assert not elsewhere.exists()


@pytest.mark.vm
@pytest.mark.usefixtures("qemu")
def test_the_storage_daemon_is_the_same_again(sock: Path, disk: Path, place: Path, capture: Path) -> None:
    other = place / "other"
    other.write_bytes(bytes(2 << 20))
    with storage_daemon(disk, sock):
        record(sock, capture, look_at)
        same = run(VHU, "replay", capture, "--as", "front-end", sock)
    with storage_daemon(other, sock):
        changed = run(VHU, "replay", capture, "--as", "front-end", sock)
    assert (same.returncode, same.stderr) == (0, ""), same.stdout
    assert changed.returncode == 1
    assert [line.partition(" recorded ")[0].partition(": ")[2] for line in changed.stdout.splitlines()[:-1]] == [
        "GET_CONFIG payload"
    ]


def test_recorded_speed_keeps_the_pauses(sock: Path, disk: Path, place: Path) -> None:
    """A pause of 0.3 s before the second request: the time between both, as the back-end sees it, is at least that."""
    capture = place / "c.jsonl"
    with vhu_blk(sock, disk):
        events = record(sock, capture, lambda frontend: None)
    first, answer, second, *_ = messages(events)
    later = Message(first.at + 300_000_000, 0, second.channel, second.sender, second.data)
    write(capture, [first, answer, later])
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as listener:
        listener.bind(str(sock.with_name("t")))
        listener.listen(1)
        with Program(words(VHU, "replay", capture, "--as", "front-end", sock.with_name("t"), "--speed", "recorded")) as play:
            peer, _ = listener.accept()
            with peer:
                peer.recv(len(first.data), socket.MSG_WAITALL)
                peer.sendall(answer.data)
                peer.settimeout(0.15)
                with pytest.raises(TimeoutError):
                    peer.recv(1)
                peer.settimeout(DEADLINE)
                assert peer.recv(len(second.data), socket.MSG_WAITALL) == second.data
            assert play.process.wait(DEADLINE) == 0


def test_a_peer_that_goes_ends_with_3(sock: Path, disk: Path, place: Path) -> None:
    capture, elsewhere = place / "c.jsonl", place / "t"
    with vhu_blk(sock, disk):
        record(sock, capture, look_at)
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as listener:
        listener.bind(str(elsewhere))
        listener.listen(1)
        closing = threading.Thread(target=_hang_up_on, args=(listener,))
        closing.start()
        done = run(VHU, "replay", capture, "--as", "front-end", elsewhere)
        closing.join(DEADLINE)
    assert done.returncode == 3
    assert "the peer closed the connection" in one_line(done.stderr)


def _hang_up_on(listener: socket.socket) -> None:
    """Accept a connection, and close it."""
    listener.accept()[0].close()


def test_a_peer_that_says_nothing_is_the_difference(sock: Path, disk: Path, place: Path) -> None:
    capture, elsewhere = place / "c.jsonl", place / "t"
    with vhu_blk(sock, disk):
        record(sock, capture, look_at)
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as listener:
        listener.bind(str(elsewhere))
        listener.listen(1)
        done = run(VHU, "replay", capture, "--as", "front-end", elsewhere, "--timeout", "0.1")
    assert done.returncode == 1
    assert ": GET_FEATURES recorded from the back-end, now nothing in 0.1 s" in done.stdout


@pytest.mark.parametrize(
    ("arguments", "code", "text"),
    [
        (["nowhere.pcapng", "--as", "front-end", "s"], 1, "there is no capture nowhere.pcapng"),
        (["/dev/null", "--as", "middle", "s"], 2, "'middle' is no side (front-end or back-end)"),
        (["/dev/null", "s"], 2, "--as"),
        (["/dev/null", "--as", "front-end", "nobody"], 3, "cannot connect to nobody"),
        (["/dev/null", "--as", "back-end", "s", "--timeout", "0.1"], 3, "nobody connected within 0.1 s"),
    ],
)
def test_a_wrong_command_line_is_one_line(place: Path, arguments: list[str], code: int, text: str) -> None:
    done = run(VHU, "replay", *arguments, cwd=place)
    assert done.returncode == code
    assert text in one_line(done.stderr)


def test_what_is_no_capture_is_not_played(sock: Path, disk: Path, place: Path) -> None:
    (place / "nonsense").write_bytes(b"nonsense\n")
    write(place / "empty.pcapng", [])
    with vhu_blk(sock, disk):
        for name, text in (("nonsense", "is no capture"), ("empty.pcapng", "has no messages to play")):
            done = run(VHU, "replay", place / name, "--as", "front-end", sock)
            assert done.returncode == 1
            assert text in one_line(done.stderr)


def test_a_user_records_with_vhu_trace(sock: Path, disk: Path, place: Path) -> None:
    """The whole way: vhu trace writes the capture, vhu replay plays it."""
    with vhu_blk(sock, disk):
        info = " ".join(words(VHU, "info", "$socket"))
        traced = run(VHU, "trace", "--connect", sock, "-w", place / "c.pcapng", "--run", info)
        done = run(VHU, "replay", place / "c.pcapng", "--as", "front-end", sock)
    assert traced.returncode == 0, traced.stderr
    assert done.returncode == 0, done.stdout
