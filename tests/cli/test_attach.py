"""`vhu attach` against `vhu-shm`: two real processes, real files."""

from __future__ import annotations

import os
import signal
import socket
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from vhostuser.protocol.framing import Frame
from vhostuser.protocol.numbers import REPLY, VERSION
from vhostuser.testing import is_listened_on

from .programs import PAGE, SHM, Program, attach, one_line, run, serving, until, vhu, words

REGION = ("--region", "0:64M")


@pytest.fixture
def pair(sock: Path, file: Path, notes: Path) -> Iterator[tuple[Program, Program]]:
    """A `vhu attach` and the `vhu-shm` that has mapped two files into it, the second one writable."""
    options = [*REGION, "--map", f"0:0:{file}", "--map", f"0:8K:{notes}:rw"]
    with serving(sock, *options) as back, attach(sock) as front:
        yield front, back


def test_ready_comes_first_and_says_what_was_agreed(pair: tuple[Program, Program]) -> None:
    ready = pair[0].event("ready")
    assert list(ready) == ["event", "features", "protocol_features", "regions"]
    assert ready["regions"] == {"0": 64 << 20}
    assert {"SHMEM", "REPLY_ACK", "BACKEND_REQ", "BACKEND_SEND_FD"} <= set(ready["protocol_features"])
    assert "VERSION_1" in ready["features"]


def test_each_file_is_an_event_and_a_mapping(pair: tuple[Program, Program]) -> None:
    front, _ = pair
    first = {"shmid": 0, "shm_offset": 0, "len": 2 * PAGE, "fd_offset": 0, "writable": False}
    second = {"shmid": 0, "shm_offset": 2 * PAGE, "len": PAGE, "fd_offset": 0, "writable": True}
    assert front.event("map") == {"event": "map", **first}
    assert front.event("map") == {"event": "map", **second}
    assert front.ask("maps", "maps")["mappings"] == [first, second]


def both_mapped(front: Program) -> None:
    front.event("map")
    front.event("map")


def test_reading_is_reading_the_file(pair: tuple[Program, Program], file: Path, notes: Path) -> None:
    front, _ = pair
    both_mapped(front)
    content = file.read_bytes() + notes.read_bytes()
    assert bytes.fromhex(front.ask("read 0 0 12288", "data")["hex"]) == content
    assert bytes.fromhex(front.ask("read 0 0x1ffe 4", "data")["hex"]) == content[0x1FFE:0x2002]
    assert front.ask("read 0 0 0", "data")["hex"] == ""


def test_writing_is_writing_the_file(pair: tuple[Program, Program], notes: Path) -> None:
    front, _ = pair
    both_mapped(front)
    assert front.ask("write 0 0x2001 deadbeef", "written") == {"event": "written", "len": 4}
    assert notes.read_bytes()[1:5] == bytes.fromhex("deadbeef")


def test_a_byte_changed_in_the_file_is_seen_without_a_message(pair: tuple[Program, Program], file: Path) -> None:
    front, _ = pair
    both_mapped(front)
    before = front.ask("counters", "counters")
    with file.open("r+b") as changed:
        changed.write(b"\xaa\x55")
    assert front.ask("read 0 0 2", "data")["hex"] == "aa55"
    assert front.ask("counters", "counters") == before


@pytest.mark.parametrize(
    ("command", "text"),
    [
        ("write 0 0 00", "0x0 is mapped read-only"),
        ("read 0 12288 1", "nothing is mapped at 0x3000"),
        ("read 0 0 99999999999", "is more than"),
        ("read 0 67108863 2", "passes its end"),
        ("read 1 0 1", "there is no region 1; there are 0"),
        ("read 0 -1 1", "is no number"),
        ("read 0 0", "the command is: read SHMID OFFSET LEN"),
        ("write 0 8192 xyz", "'xyz' is no bytes in hexadecimal"),
        ("write 0 8192 123", "'123' is no bytes in hexadecimal"),
        ("start many", "is no number"),
        ("quit now", "the command is: quit"),
        ("bogus", "there is no command 'bogus'; there are maps, read"),
    ],
)
def test_a_command_that_does_not_work_is_an_error_event(pair: tuple[Program, Program], command: str, text: str) -> None:
    front, _ = pair
    both_mapped(front)
    assert text in front.ask(command, "error")["error"]
    assert len(front.ask("maps", "maps")["mappings"]) == 2


def test_for_people_an_error_is_its_words(sock: Path) -> None:
    with serving(sock, *REGION), vhu("attach", sock) as front:
        assert front.line().startswith("ready ")
        front.send("write 0 0 zz")
        assert front.line() == "error: 'zz' is no bytes in hexadecimal"


def test_a_truncated_file_is_an_error_not_a_signal(pair: tuple[Program, Program], file: Path) -> None:
    front, _ = pair
    both_mapped(front)
    os.truncate(file, 0)
    assert "truncated" in front.ask("read 0 0 4", "error")["error"]
    assert front.ask("maps", "maps")


def test_a_reset_takes_everything_and_a_start_brings_it_back(pair: tuple[Program, Program]) -> None:
    front, _ = pair
    both_mapped(front)
    assert front.ask("reset", "reset") == {"event": "reset"}
    assert front.ask("maps", "maps")["mappings"] == []
    front.send("start 2")
    events = [front.line() for _ in range(3)]
    assert sorted(event.split('"')[3] for event in events) == ["map", "map", "started"]
    assert len(front.ask("maps", "maps")["mappings"]) == 2


def test_quit_ends_both(pair: tuple[Program, Program]) -> None:
    front, back = pair
    front.send("quit")
    assert front.event("closed") == {"event": "closed", "reason": "quit"}
    assert (front.end(), back.end()) == (0, 0)


def test_the_end_of_input_is_no_end(pair: tuple[Program, Program]) -> None:
    front, back = pair
    front.close_stdin()
    both_mapped(front)
    back.signal(signal.SIGTERM)
    assert "closed the connection" in front.event("closed")["reason"]
    assert (front.end(), back.end()) == (0, 0)


def test_the_last_line_needs_no_newline(pair: tuple[Program, Program]) -> None:
    front, _ = pair
    assert front.process.stdin
    front.process.stdin.write(b"\n  \nmaps\nquit")
    front.close_stdin()
    assert front.event("maps")
    assert front.event("closed")["reason"] == "quit"
    assert front.end() == 0


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP], ids=lambda number: number.name)
def test_p08_a_signal_ends_it_cleanly(pair: tuple[Program, Program], number: signal.Signals) -> None:
    front, back = pair
    both_mapped(front)
    front.signal(number)
    assert front.event("closed")["reason"] == "interrupted by a signal"
    assert (front.end(), back.end()) == (0, 0)
    assert front.said == ""


def test_p10_a_closed_output_ends_it_quietly(pair: tuple[Program, Program]) -> None:
    front, back = pair
    front.event("ready")
    assert front.process.stdout
    front.process.stdout.close()
    front.send("maps")
    assert (front.end(), back.end()) == (0, 0)
    assert front.said == ""


def test_listen_waits_for_a_back_end(sock: Path, file: Path) -> None:
    with attach(sock, "--listen") as front, socket.socket(socket.AF_UNIX) as ours:
        until(lambda: is_listened_on(sock), "it listens")
        ours.connect(str(sock))
        options = words(SHM, "--fd", str(ours.fileno()), *REGION, "--map", f"0:0:{file}")
        with Program(options, pass_fds=[ours.fileno()]) as back:
            ours.close()
            assert front.event("map")["len"] == 2 * PAGE
            front.send("quit")
            assert (front.end(), back.end()) == (0, 0)
    assert not sock.exists()


def test_no_queue_is_started_where_none_is_wanted(sock: Path, file: Path) -> None:
    with serving(sock, *REGION, "--map", f"0:0:{file}"), attach(sock, "--start-queues", "0") as front:
        front.event("ready")
        assert front.ask("maps", "maps")["mappings"] == []
        front.send("start 1")
        assert front.event("map")["len"] == 2 * PAGE


def test_no_more_queues_are_started_than_there_are(sock: Path) -> None:
    with serving(sock, *REGION, "--num-queues", "2"), attach(sock, "--start-queues", "256") as front:
        front.event("ready")
        assert front.ask("start 256", "started")["queues"] == []
        front.ask("reset", "reset")
        assert front.ask("start 256", "started")["queues"] == [0, 1]


def test_mappings_beyond_the_quota_are_refused(sock: Path, file: Path, notes: Path) -> None:
    options = [*REGION, "--map", f"0:0:{file}", "--map", f"0:8K:{notes}"]
    with serving(sock, *options) as back, attach(sock, "--max-maps", "1") as front:
        refused = front.event("refused")
        assert refused["request"] == "SHMEM_MAP"
        assert "quota of 1 live mappings" in refused["reason"]
        assert len(front.ask("maps", "maps")["mappings"]) == 1
        assert front.ask("counters", "counters")["refused"] == 1
        front.send("quit")
        assert back.end() == 0
        assert f"{notes} at 0x2000 of region 0 is not mapped" in back.said


def test_a_back_end_that_is_not_there_is_exit_code_3(sock: Path) -> None:
    done = run("vhostuser", "attach", sock, "--json")
    assert done.returncode == 3
    assert "No such file or directory (ENOENT); try: start the back-end first" in one_line(done.stderr)
    assert done.stdout == ""


def test_an_address_that_is_taken_is_exit_code_1(file: Path) -> None:
    done = run("vhostuser", "attach", file, "--listen")
    assert done.returncode == 1
    assert "cannot listen on" in one_line(done.stderr)


@contextmanager
def impostor(sock: Path, talk: Callable[[socket.socket], None]) -> Iterator[None]:
    """Something at `sock` that is no good back-end: it takes one connection and does `talk` with it."""
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(str(sock))
        listener.listen(1)

        def serve() -> None:
            with listener.accept()[0] as peer:
                talk(peer)
                while peer.recv(4096):
                    pass

        thread = threading.Thread(target=serve)
        thread.start()
        yield
        thread.join()


@pytest.mark.parametrize(
    ("talk", "text"),
    [
        (lambda peer: None, "was not answered within 0.2 s"),
        (lambda peer: peer.shutdown(socket.SHUT_RDWR), "closed the connection"),
        (lambda peer: peer.sendall(bytes(12)), "is not the protocol's version"),
        (
            lambda peer: peer.sendall(Frame(2, VERSION | REPLY, bytes(8)).pack()),
            "expected the reply to GET_FEATURES|nobody asked for",
        ),
        (lambda peer: peer.sendall(b"\1\0\0\0\5"), "not complete|was not answered|within"),
    ],
    ids=["silent", "gone", "version", "reply", "half"],
)
def test_a_peer_that_is_no_back_end_is_exit_code_3(sock: Path, talk: Callable[[socket.socket], None], text: str) -> None:
    with impostor(sock, talk):
        done = run("vhostuser", "attach", sock, "--json", "--ack-timeout", "0.2")
    assert done.returncode == 3
    assert any(each in one_line(done.stderr) for each in text.split("|"))


@pytest.mark.parametrize(
    "arguments",
    [[], ["--json"], ["s", "t"], ["s", "--max-maps", "-1"], ["s", "--ack-timeout", "0"], ["s", "--start-queues", "257"]],
)
def test_a_wrong_command_line_is_exit_code_2(arguments: list[str]) -> None:
    done = run("vhostuser", "attach", *arguments)
    assert done.returncode == 2
    assert one_line(done.stderr).startswith("vhu attach: ")


def test_for_people_it_is_a_line_an_event(sock: Path, file: Path) -> None:
    with serving(sock, *REGION, "--map", f"0:4K:{file}"), vhu("attach", sock) as front:
        assert front.line().startswith("ready features=")
        assert front.line() == "map shmid=0 shm_offset=0x1000 len=0x2000 fd_offset=0x0 writable=False"
        front.send("maps")
        mapping = "{shmid=0 shm_offset=0x1000 len=0x2000 fd_offset=0x0 writable=False}"
        assert front.line() == f"maps mappings={mapping}"
        front.send("quit")
        assert front.line() == "closed reason=quit"


# The dialects of shared memory: the same on both sides works, another one is explained.

DIALECTS = {"22": "released", "21": "rust-vmm-0.16", "20": "draft"}


@pytest.mark.parametrize("dialect", [*DIALECTS, *DIALECTS.values()])
def test_two_of_the_same_dialect_work(sock: Path, file: Path, dialect: str) -> None:
    options = ("--shmem-dialect", dialect)
    with serving(sock, *REGION, "--map", f"0:0:{file}", *options) as back, attach(sock, *options) as front:
        assert "diagnosis" not in front.event("ready")
        assert front.event("map")["len"] == 2 * PAGE
        front.send("quit")
        assert (front.end(), back.end()) == (0, 0)
        assert " WARN " not in back.said + front.said


@pytest.mark.parametrize(("ours", "theirs"), [(a, b) for a in DIALECTS for b in DIALECTS if a != b])
def test_two_of_different_dialects_are_told_what_to_try(sock: Path, file: Path, ours: str, theirs: str) -> None:
    with (
        serving(sock, *REGION, "--map", f"0:0:{file}", "--shmem-dialect", theirs) as back,
        attach(sock, "--shmem-dialect", ours) as front,
    ):
        ready = front.event("ready")
        assert ready["regions"] == {}
        assert f"try --shmem-dialect {DIALECTS[theirs]}" in ready["diagnosis"]
        front.ask("counters", "counters")
        front.send("quit")
        assert (front.end(), back.end()) == (0, 0)
        assert f"try --shmem-dialect {DIALECTS[theirs]}" in front.said
        assert f"did not acknowledge SHMEM (bit {theirs})" in back.said
        assert theirs == "22" or "try --shmem-dialect released" in back.said
