"""`vhu trace` between real processes."""

from __future__ import annotations

import json
import os
import resource
import shlex
import signal
import socket
import stat
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from vhostuser.protocol.numbers import FrontendRequest
from vhostuser.protocol.payloads import U64, VringState
from vhostuser.testing import Wire, is_listened_on, message
from vhostuser.trace.capture import open_capture
from vhostuser.trace.event import Message, Remark
from vhostuser.transport.listen import connect

from .programs import SECONDS, VHU, Program, one_line, run, serving, until, vhu, words

Q = FrontendRequest
NUM = message(Q.SET_VRING_NUM, VringState(0, 64), flags=9)
ASK = message(Q.GET_FEATURES)
ANSWER = message(Q.GET_FEATURES, U64(1 << 30), flags=5)
REGION = ("--region", "0:64M", "--reconnect")
INFO = f"{shlex.quote(sys.executable)} -m vhostuser info $socket"


@pytest.fixture
def a(place: Path) -> Path:
    """Where the front-end connects."""
    return place / "a"


class Tracing:
    """`vhu trace` between this test, which is the front-end, and a listener of this test, which is the back-end."""

    def __init__(self, place: Path, program: Program, listener: socket.socket) -> None:
        self.place, self.program, self._listener = place, program, listener

    def connected(self) -> tuple[Wire, Wire]:
        """A front-end, and the back-end that it reaches."""
        front = Wire(connect(self.place / "a"))
        self._listener.settimeout(SECONDS)
        return front, Wire(self._listener.accept()[0])

    def exchange(self) -> None:
        """A session of one request and its reply."""
        front, back = self.connected()
        with front, back:
            front.send(ASK)
            assert back.receive().request == Q.GET_FEATURES
            back.send(ANSWER)
            assert front.receive().request == Q.GET_FEATURES
            front.end()
            back.closes()


@contextmanager
def tracing(place: Path, *options: str | Path, stdout: int | None = None) -> Iterator[Tracing]:
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as listener:
        listener.bind(str(place / "b"))
        listener.listen(1)
        command = words(VHU, "trace", "--listen", place / "a", "--connect", place / "b", *options)
        with Program(command) as program:
            until(lambda: is_listened_on(place / "a") or program.process.poll() is not None, "it listens")
            yield Tracing(place, program, listener)


def ended(program: Program, code: int = 0) -> str:
    """End it, with that exit code; what it said."""
    program.signal(signal.SIGINT)
    assert program.end() == code, program.said
    return program.said


def test_a_line_a_request_and_its_reply(place: Path) -> None:
    with tracing(place) as it:
        it.exchange()
        assert "--- connection 0 opened: front-end pid" in it.program.line()
        assert "F→B GET_FEATURES = 0x40000000 {PROTOCOL_FEATURES} <" in it.program.line()
        assert "connection 0 note: front-end sends no more on the front-end channel" in it.program.line()
        assert "connection 0 closed: the front-end closed the connection" in it.program.line()
        it.exchange()
        assert "connection 1 opened" in it.program.line()
        assert "vhu trace: 4 messages on 2 connections in" in ended(it.program)
        assert not (place / "a").exists()


def test_once_ends_with_the_first(place: Path) -> None:
    with tracing(place, "--once") as it:
        it.exchange()
        assert it.program.end() == 0
        assert "2 messages on 1 connection in" in one_line(it.program.said)


@pytest.mark.parametrize("form", ["-w", "--jsonl"])
def test_a_capture_has_all_that_passed(place: Path, form: str) -> None:
    path = place / f"f.{'pcapng' if form == '-w' else 'jsonl'}"
    with tracing(place, form, path, "-e", "SHMEM_MAP") as it:
        it.exchange()
        it.exchange()
        assert f"f.{path.suffix[1:]}: 10 events" in ended(it.program)
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    events = list(open_capture(path))
    assert [each.data for each in events if isinstance(each, Message)] == [ASK, ANSWER] * 2
    assert [each.connection for each in events if isinstance(each, Message)] == [0, 0, 1, 1]
    assert sum(isinstance(each, Remark) for each in events) == 6


def test_json_filter_and_absolute_times(place: Path) -> None:
    with tracing(place, "--json", "-e", "GET_FEATURES and latency>0ns", "-t") as it:
        it.exchange()
        found = json.loads(it.program.line())
        assert (found["msg"], found["dir"], found["reply"]) == ("GET_FEATURES", "F>B", 1 << 30)
        assert found["t"] > 1_600_000_000
        ended(it.program)


def test_times_count_from_the_beginning_also_where_a_filter_leaves_it_out(place: Path) -> None:
    with tracing(place, "--once", "--jsonl", place / "later", "-e", "GET_FEATURES", "--json") as traced:
        front, back = traced.connected()
        with front, back:
            front.send(NUM)
            back.receive()
            front.send(ASK)
            back.receive()
            back.send(ANSWER)
            front.receive()
            front.end()
        shown = json.loads(traced.program.line())
        assert traced.program.end() == 0
    began = next(iter(open_capture(place / "later"))).at
    assert shown["t"] == round((shown["at"] - began) / 1e9, 6) > 0


@pytest.mark.parametrize("options", [["-c"], ["-c", "--json"]])
def test_a_summary_comes_in_the_end(place: Path, options: list[str]) -> None:
    with tracing(place, *options) as it:
        it.exchange()
        ended(it.program)
        shown = ""
        while line := it.program.line():
            shown += line
        assert "GET_FEATURES" in shown
        assert "F→B" not in shown
        if "--json" in options:
            json.loads(shown)


def test_a_capture_on_standard_output_is_alone_there(place: Path) -> None:
    with tracing(place, "--jsonl", "-") as it:
        it.exchange()
        ended(it.program)
        kinds = []
        while line := it.program.line():
            kinds.append(json.loads(line))
        assert len(kinds) >= 4


@pytest.mark.parametrize(("choice", "painted"), [("always", True), ("auto", False), ("never", False)])
def test_colours_where_they_are_wanted(place: Path, choice: str, painted: bool) -> None:
    with tracing(place, "--color", choice) as it:
        it.exchange()
        assert ("\033[" in it.program.line()) is painted
        ended(it.program)


# What must not end a session


def test_a_full_disk_ends_the_capture_with_one_line_and_not_the_session(place: Path) -> None:
    with tracing(place, "--jsonl", "/dev/full") as it:
        it.exchange()
        it.exchange()
        for _ in range(3):
            assert it.program.line()
        said = ended(it.program, 1)
        assert said.count("No space left on device (ENOSPC)") == 1
        assert "vhu trace: no more is written to /dev/full: " in said
        assert "; the session goes on\n" in said
        assert "4 messages on 2 connections" in said


def test_a_capture_that_can_not_even_begin_is_said_at_once(place: Path) -> None:
    done = run(VHU, "trace", "--listen", place / "a", "--connect", place / "b", "-w", "/dev/full")
    assert done.returncode == 1
    assert "cannot write the capture /dev/full: No space left on device (ENOSPC)" in one_line(done.stderr)


def test_a_disk_that_fills_up_ends_the_capture_and_not_the_session(place: Path) -> None:
    """With a limit on the size of files: the capture is whole up to there."""
    path = place / "f.jsonl"
    command = words(VHU, "trace", "--listen", place / "a", "--connect", place / "b", "--jsonl", path)
    limited = ["/bin/sh", "-c", f"ulimit -f 8; exec {shlex.join(command)}"]
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as listener:
        listener.bind(str(place / "b"))
        listener.listen(1)
        with Program(limited) as program:
            until(lambda: is_listened_on(place / "a") or program.process.poll() is not None, "it listens")
            it = Tracing(place, program, listener)
            for _ in range(12):
                it.exchange()
            said = ended(program, 1)
    assert "File too large (EFBIG); the session goes on" in said
    assert "24 messages on 12 connections" in said


def test_output_that_nobody_reads_ends_the_output_and_not_the_session(place: Path) -> None:
    path = place / "f.pcapng"
    with tracing(place, "-w", path) as it:
        assert it.program.process.stdout
        it.program.process.stdout.close()
        it.exchange()
        it.exchange()
        said = ended(it.program)
        assert "no more is written to standard output: nobody reads it; the session goes on" in said
    assert len([each for each in open_capture(path) if isinstance(each, Message)]) == 4


def test_standard_output_that_is_full_ends_the_output_and_not_the_session(place: Path) -> None:
    with open("/dev/full", "w") as full, serving(place / "b", *REGION):
        done = subprocess.run(
            words(VHU, "trace", "--connect", place / "b", "--run", INFO),
            stdout=full,
            stderr=subprocess.PIPE,
            text=True,
            timeout=SECONDS,
            check=False,
        )
    assert done.returncode == 1
    assert "cannot write to standard output: No space left on device (ENOSPC)" in done.stderr
    assert "shared memory regions: 0: 64 MiB" in done.stderr


@pytest.mark.parametrize("who", [0, 1])
@pytest.mark.parametrize(
    "data",
    [
        os.urandom(1 << 16),
        b"GET / HTTP/1.1\r\n\r\n",
        NUM[:7],
        message(77, size=1 << 31),
        message(1, flags=0x31) + b"\033[2J",
    ],
    ids=["noise", "http", "half", "huge", "escape"],
)
def test_a_hostile_side_does_not_keep_the_next_front_end_out(place: Path, who: int, data: bytes) -> None:
    with tracing(place, "-w", place / "f.pcapng") as it:
        ends = it.connected()
        with ends[0], ends[1]:
            ends[who].send(data)
            ends[who].socket.shutdown(socket.SHUT_WR)
            got = b""
            while piece := ends[1 - who].socket.recv(1 << 16):
                got += piece
            assert got == data
        it.exchange()
        shown = ""
        while "connection 1 closed" not in shown:
            shown += it.program.line()
        assert "\033" not in shown
        ended(it.program)
    came = b"".join(
        each.data for each in open_capture(place / "f.pcapng") if isinstance(each, Message) and not each.connection
    )
    assert came == data


# Ends


def test_the_back_end_is_not_there(place: Path) -> None:
    with vhu("trace", "--listen", place / "a", "--connect", place / "nobody", "--once") as program:
        until(lambda: is_listened_on(place / "a"), "it listens")
        with Wire(connect(place / "a")) as front:
            front.closes()
        assert program.end() == 3
        assert f"cannot connect to {place / 'nobody'}: No such file or directory (ENOENT); try: start" in program.said


def test_run_starts_the_front_end_and_ends_with_it(place: Path) -> None:
    with serving(place / "b", *REGION):
        done = run(VHU, "trace", "--connect", place / "b", "--run", INFO)
        assert done.returncode == 0
        assert "GET_SHMEM_CONFIG = sizes={0=0x4000000}" in done.stdout
        assert "shared memory regions: 0: 64 MiB" in done.stderr
        done = run(VHU, "trace", "--connect", place / "b", "--run", "exit 7")
        assert done.returncode == 7
        done = run(VHU, "trace", "--connect", place / "b", "--run", "kill -9 $$")
        assert done.returncode == 137


def test_the_command_of_run_may_open_as_many_fds_as_without_us(place: Path) -> None:
    """The tracer raises its own limit, which processes inherit."""
    hard = resource.getrlimit(resource.RLIMIT_NOFILE)[1]
    limits = (min(hard, 300) if hard > 0 else 300, hard)
    command = words(
        VHU, "trace", "--connect", place / "b", "--run", f"ulimit -S -n > {place}/soft; ulimit -H -n > {place}/hard"
    )
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as listener:
        listener.bind(str(place / "b"))
        done = subprocess.run(
            command,
            capture_output=True,
            text=True,
            timeout=SECONDS,
            check=False,
            preexec_fn=lambda: resource.setrlimit(resource.RLIMIT_NOFILE, limits),
        )
    assert done.returncode == 0, done.stderr
    assert (place / "soft").read_text() == f"{limits[0]}\n"
    assert (place / "hard").read_text() in (f"{hard}\n", "unlimited\n")


def test_run_starts_the_back_end(place: Path) -> None:
    command = f"{shlex.quote(sys.executable)} -m vhostuser.cli.shm --socket-path {{socket}} --region 0:4K"
    with vhu("trace", "--listen", place / "a", "--run", command) as program:
        until(lambda: is_listened_on(place / "a"), "it listens")
        info = run(VHU, "info", place / "a", "--json")
        assert json.loads(info.stdout)["regions"] == {"0": 4096}
        assert program.end() == 0  # the back-end serves one front-end, and ends
        assert "on 1 connection in" in program.said


def test_a_back_end_that_ends_before_it_listens(place: Path) -> None:
    command = f"while [ ! -e {place}/now ]; do sleep 0.01; done; exit 5"
    with vhu("trace", "--listen", place / "a", "--run", command) as program:
        until(lambda: is_listened_on(place / "a"), "it listens")
        with Wire(connect(place / "a")) as front:
            (place / "now").touch()
            front.closes()
        assert program.end() == 3
        assert "the command of --run: it ended with 5 before it listened" in program.said


def test_both_ends_may_be_open_sockets(place: Path) -> None:
    front, theirs = socket.socketpair()
    back, others = socket.socketpair()
    with front, back:
        with theirs, others:
            fds = (theirs.fileno(), others.fileno())
            command = words(VHU, "trace", "--listen", f"fd:{fds[0]}", "--connect", f"fd:{fds[1]}")
            program = Program(command, pass_fds=fds)
        with program:
            Wire(front).send(NUM)
            assert Wire(back).receive().request == Q.SET_VRING_NUM
            front.shutdown(socket.SHUT_WR)
            back.close()
            assert program.end() == 0


def test_a_listening_socket_may_be_given(place: Path) -> None:
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as listener, serving(place / "b", *REGION):
        listener.bind(str(place / "a"))
        listener.listen(1)
        command = words(VHU, "trace", "--listen", f"fd:{listener.fileno()}", "--connect", place / "b", "--once")
        with Program(command, pass_fds=[listener.fileno()]) as program:
            assert run(VHU, "info", place / "a").returncode == 0
            assert program.end() == 0


@pytest.mark.parametrize(
    ("arguments", "words_"),
    [
        ([], "--listen is missing; try: vhu trace --listen A --connect B"),
        (["--listen", "a"], "--connect is missing"),
        (["--run", "true"], "--listen is missing"),
        (["--listen", "fd:x", "--connect", "b"], "--listen 'fd:x': expected a path or fd:N"),
        (["--listen", "fd:99", "--connect", "b"], "cannot use fd 99: Bad file descriptor (EBADF)"),
        (["--listen", "fd:0", "--connect", "b", "--run", "true"], "--run needs a path to connect to"),
        (["--listen", "a", "--connect", "b", "-w", "-", "--json"], "only one of them can be written to standard output"),
        (["--listen", "a", "--connect", "b", "-w", "f", "--jsonl", "./f"], "-w and --jsonl name the same file"),
        (["--listen", "a", "--connect", "b", "--inject", "dely=1ms"], "--inject: there is no action 'dely'"),
        (["--listen", "a", "--connect", "b", "-e", "SHMEM_MAX"], "-e: there is no request or word 'SHMEM_MAX'"),
        (["--listen", "a", "--connect", "b", "-s", "nothing.py"], "nothing.py: No such file or directory"),
        (["--listen", "a", "--connect", "b", "-w", "/no/such/f.pcapng"], "/no/such/f.pcapng: No such file or directory"),
    ],
)
def test_what_can_not_be_done_is_said(place: Path, arguments: list[str], words_: str) -> None:
    done = run(VHU, "trace", *arguments, cwd=place)
    assert done.returncode in (1, 2)
    assert done.stdout == ""
    assert done.stderr.startswith(f"vhu trace: {words_}")
    assert "Traceback" not in done.stderr
    assert not (place / "a").exists()


def test_a_capture_stays_as_it_was_where_nothing_can_be_listened_on(place: Path) -> None:
    (place / "kept.pcapng").write_bytes(b"an older capture")
    (place / "file").write_bytes(b"no socket")
    assert run(VHU, "trace", "--listen", "file", "--connect", "b", "-w", "kept.pcapng", cwd=place).returncode == 1
    assert (place / "kept.pcapng").read_bytes() == b"an older capture"


def test_a_front_end_that_run_started_may_end_after_its_session(place: Path) -> None:
    connects = (
        "import socket, sys, time; s = socket.socket(socket.AF_UNIX); s.connect(sys.argv[1]); s.close(); time.sleep(0.3)"
    )
    command = f"{shlex.join([sys.executable, '-c', connects])} $socket; exit 7"
    ours, theirs = socket.socketpair()
    with ours:
        with theirs:
            fd = theirs.fileno()
            program = Program(words(VHU, "trace", "--connect", f"fd:{fd}", "--run", command), pass_fds=[fd])
        with program:
            assert program.end() == 7


# Rules, add-ons, queues


def test_rules_and_addons_work_together(place: Path) -> None:
    addon = place / "addon.py"
    addon.write_text(
        "def set_vring_num(message):\n    return message.changed(num=32)\n\ndef set_owner(message):\n    1 / 0\n"
    )
    with tracing(place, "-s", addon, "--inject", "corrupt=num^1:num==32", "--inject", "drop:GET_STATUS") as it:
        front, back = it.connected()
        with front, back:
            front.send(message(Q.SET_OWNER) + message(Q.GET_STATUS) + NUM)
            assert back.receive().request == Q.SET_OWNER
            assert VringState.unpack(back.receive().payload).num == 33
        said = ended(it.program)
    assert f"vhu trace: {addon}:5: ZeroDivisionError in set_owner: division by zero; the message goes on as it came" in said
    assert "corrupt=num^1:num==32: done 1 times; drop:GET_STATUS: done 1 times" in said


def test_queues_shows_requests_in_rings(place: Path, file: Path) -> None:
    drive = f"{shlex.quote(sys.executable)} -m vhostuser drive blk $socket read 0 8 >/dev/null"
    image = place / "image"
    image.write_bytes(bytes(1 << 20))
    with serving(place / "b", "--blk-file", str(image), module="vhostuser.cli.blk"):
        done = run(VHU, "trace", "--connect", place / "b", "--run", drive, "--queues")
    assert done.returncode == 0, done.stderr
    assert any("SET_VRING_KICK" in line for line in done.stdout.splitlines())
    assert any("queue" in line for line in done.stdout.splitlines()), done.stdout
