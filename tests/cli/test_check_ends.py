"""`vhu check` in hands that are new to it, and on bad days: each end is one clear line, and leaves nothing behind."""

from __future__ import annotations

import contextlib
import os
import shlex
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import IO

import pytest

from vhostuser.cli import check, check_back, check_front, checking, fuzz, outcome
from vhostuser.conformance import peer
from vhostuser.device import Device
from vhostuser.testing import listening
from vhostuser.virtio.chain import DescriptorChain

from .programs import SECONDS, VHU, environment, one_line, until, words

SIDES = ("back-end", "front-end")
RNG = shlex.join([sys.executable, "-m", "vhostuser.cli.rng", "--socket-path"]) + " {socket} --reconnect"
FULL = "/dev/full"


def checked(*arguments: str | Path, out: int | IO[bytes] = subprocess.PIPE) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        words(VHU, "check", *arguments),
        stdin=subprocess.DEVNULL,
        stdout=out,
        stderr=subprocess.PIPE,
        text=True,
        timeout=4 * SECONDS,
        check=False,
        env=environment(),
    )


@pytest.fixture
def ends(monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]) -> Callable[..., tuple[int, str]]:
    """Run `vhu check` here, which is sooner: its exit code, and the one line that it says."""
    for side in (check_back, check_front):
        monkeypatch.setattr(side, "on_end", lambda stop: None)

    def run(*words: str) -> tuple[int, str]:
        code = outcome.run("vhu check", lambda: command(words))
        said = capfd.readouterr()
        assert said.out == ""
        line = one_line(said.err)
        assert "internal error" not in line
        return code, line

    return run


def command(words: Sequence[str]) -> int:
    """The exit code of the command, that of an option that is wrong, too."""
    try:
        return check.check(list(words))
    except SystemExit as end:
        return int(str(end.code))


@pytest.mark.parametrize(
    ("command_line", "hint"),
    [
        ("sleep 100", "try: {socket} in CMD, in the place of the path"),
        ("./serve.sh", "try: {socket} in CMD, in the place of the path"),
        ("sh -c 'sleep 100; serve $socket'", "try: CMD by itself, to see what it says"),
        ("sh -c 'sleep 100' {socket}", "try: CMD by itself, to see what it says"),
    ],
)
@pytest.mark.parametrize("entry", [check.check, fuzz.fuzz])
def test_a_command_that_never_listens_is_told_with_what_to_try(
    monkeypatch: pytest.MonkeyPatch,
    capfd: pytest.CaptureFixture[str],
    tmp_path: Path,
    entry: Callable[[list[str]], int],
    command_line: str,
    hint: str,
) -> None:
    for module in (check_back, fuzz):
        monkeypatch.setattr(module, "on_end", lambda stop: None)
    monkeypatch.setattr(peer, "APPEARS", 0.1)
    (tmp_path / "serve.sh").write_text("#!/bin/sh\nsleep 100\n")
    (tmp_path / "serve.sh").chmod(0o755)
    monkeypatch.chdir(tmp_path)
    words = ["back-end"] if entry is check.check else []
    assert outcome.run("vhu", lambda: entry([*words, "--run", command_line])) == 3
    line = one_line(capfd.readouterr().err)
    assert " runs, but does not listen on /" in line
    assert line.endswith(f"; {hint}")


@pytest.mark.parametrize("side", SIDES)
@pytest.mark.parametrize(
    ("words", "code", "says"),
    [
        (["--run", ""], 2, "'' is no command line: the command line is empty"),
        (["--run", "  "], 2, "'  ' is no command line: the command line is empty"),
        (["--run", "vhu-rng '"], 2, "is no command line: No closing quotation"),
        (["--run", "/nowhere/at-all {socket}"], 3, "cannot start /nowhere/at-all: No such file or directory; try: CMD by"),
        (["--run", "/ {socket}"], 3, "cannot start /: Permission denied"),
        (["--run", "false {socket}"], 3, "false ended (exit status 1) "),
        (["--run", "false"], 3, "; try: {socket} in CMD, in the place of the path"),
        (["--run", "sh -c 'kill -SEGV $$' {socket}"], 3, "sh ended (killed by SIGSEGV) "),
        (["--timeout", "0", "--list"], 2, "argument --timeout: '0' is no time in seconds between 0 and 86400"),
        (["--timeout", "-1", "--list"], 2, "--timeout"),
        (["--rul", "x"], 2, "did you mean --rule?"),
        (["--rule", "no such rule at all", "--list"], 2, "no rule's name matches 'no such rule at all'; try: vhu check "),
        (["--section", "Mars", "--list"], 2, "no section contains 'Mars'; try: vhu check "),
        (["--section", "Comunication", "--list"], 2, "did you mean Communication"),
        (["--section", "vhost_user_set_vring_enabel", "--list"], 2, "did you mean VHOST_USER_SET_VRING_ENABLE"),
        (
            ["--section", "Header", "--rule", "protocol_features_are", "--list"],
            2,
            "no rule is in that section and has such a",
        ),
    ],
)
def test_what_a_newcomer_gets_wrong_is_one_line(
    ends: Callable[..., tuple[int, str]], side: str, words: list[str], code: int, says: str
) -> None:
    got, line = ends(side, *words)
    assert got == code
    assert says in line


@pytest.mark.parametrize(
    ("words", "meant"),
    [
        (
            ["back-end", "--list", "--rule", "a_base_of_more_then_sixteen_bits_is_refused"],
            "a_base_of_more_than_sixteen_bits_is_",
        ),
        (["front-end", "--list", "--rule", "The first page can be maped"], "the_first_page_can_be_mapped"),
        (["backend", "/tmp/s"], "back-end?"),
    ],
)
def test_what_is_misspelt_is_recognised(ends: Callable[..., tuple[int, str]], words: list[str], meant: str) -> None:
    code, line = ends(*words)
    assert code == 2
    assert f"did you mean {meant}" in line


@pytest.mark.parametrize(
    ("place", "says"),
    [
        ("file", "Connection refused"),
        (".", "Connection refused"),
        ("nobody", "No such file"),
        ("x" * 200, "at most 107; try: another path"),
    ],
)
def test_a_socket_that_is_none_is_told_with_its_path(
    ends: Callable[..., tuple[int, str]], tmp_path: Path, place: str, says: str
) -> None:
    (tmp_path / "file").touch()
    code, line = ends("back-end", str(tmp_path / place), "--timeout", "0.1")
    assert code == 3
    assert says in line
    assert str(tmp_path) in line


@pytest.mark.parametrize(("side", "option"), [("back-end", []), ("front-end", ["--listen"])])
def test_a_file_in_the_place_of_the_socket_is_left_alone(
    ends: Callable[..., tuple[int, str]], tmp_path: Path, side: str, option: list[str]
) -> None:
    precious = tmp_path / "disk.img"
    precious.write_bytes(b"precious")
    code, line = ends(side, *option, str(precious), "--run", "false {socket}")
    assert code == 3
    assert f"cannot listen on {precious}: something that is no socket is there; try: another path" in line
    assert precious.read_bytes() == b"precious"


@pytest.mark.parametrize("side", SIDES)
def test_the_exit_status_of_an_interrupt_is_told(side: str) -> None:
    assert "; 130 interrupted\n" in " ".join(checked(side, "--help").stdout.splitlines()) + "\n"
    page = Path(__file__, "../../../docs/check.md").resolve().read_text()
    assert "130 interrupted" in page


@contextlib.contextmanager
def running(*arguments: str | Path) -> Iterator[subprocess.Popen[str]]:
    """`vhu check`, in a session of its own."""
    process = subprocess.Popen(
        words(VHU, "check", *arguments),
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env=environment(),
        start_new_session=True,
    )
    with process:
        try:
            yield process
        finally:
            process.kill()


def test_an_interrupt_sums_up_what_there_was_and_ends_the_peer(tmp_path: Path) -> None:
    report, noted = tmp_path / "report.xml", tmp_path / "pid"
    script = f'echo $$ > {shlex.quote(str(noted))}; exec "$@"'
    command = f"{shlex.join(['sh', '-c', script, 'sh'])} {RNG}"
    with running("back-end", "--run", command, "-v", "--junit", report) as process:
        assert process.stdout
        seen = [process.stdout.readline(), process.stdout.readline()]
        pid = int(noted.read_text())
        process.send_signal(signal.SIGINT)
        rest, complaint = process.communicate(timeout=4 * SECONDS)
    assert "kept" in "".join(seen)
    assert process.returncode == 130
    assert " rule" in rest.splitlines()[-1]
    assert "interrupted (the last rule was " in one_line(complaint)
    assert report.read_text().count("<testcase") >= 1
    assert not Path(f"/proc/{pid}").exists()


def test_a_rule_that_was_told_counts_when_the_interrupt_comes_with_its_line(
    monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    def put(text: str) -> None:
        monkeypatch.undo()
        outcome.put(text)
        raise KeyboardInterrupt

    monkeypatch.setattr(check_back, "on_end", lambda stop: None)
    monkeypatch.setattr(checking, "put", put)
    with listening(TooMuch()) as (path, _):
        code = outcome.run("vhu check", lambda: check.check(["back-end", path, "--rule", "^there_is_a_queue", "--json"]))
    said = capfd.readouterr()
    assert code == 130
    assert said.out.count("\n") == 1
    told = said.err.splitlines()[-1]  # the back-end is in this process, too, and may have a log
    assert told == "vhu check: interrupted (the last rule was there_is_a_queue_and_no_more_than_256)"


def test_a_back_end_that_was_started_is_told_to_end_before_it_is_killed(tmp_path: Path) -> None:
    noted = tmp_path / "noted"
    script = f'trap "echo told > {shlex.quote(str(noted))}; exit" TERM; {RNG} & wait'
    done = checked("back-end", "--run", shlex.join(["sh", "-c", script]), "--rule", "^the_device_can_be_owned")
    assert (done.returncode, done.stderr) == (0, "")
    assert noted.read_text() == "told\n"


def test_a_second_interrupt_leaves_no_peer_behind(tmp_path: Path) -> None:
    noted = tmp_path / "pid"
    stubborn = (
        f"import os,signal,sys,time;signal.signal(15,signal.SIG_IGN);open({str(noted)!r},'w').write(f'{{os.getpid()}}\\n')"
    )
    command = shlex.join([sys.executable, "-I", "-S", "-c", stubborn + ";time.sleep(600)"]) + " {socket}"
    with running("front-end", "--run", command) as process:
        until(lambda: noted.exists() and noted.read_text().endswith("\n"), "the peer says its number")
        pid = int(noted.read_text())
        process.send_signal(signal.SIGINT)
        with contextlib.suppress(subprocess.TimeoutExpired):
            process.wait(0.3)  # it waits for the peer to end, which does not
        process.send_signal(signal.SIGINT)
        process.communicate(timeout=4 * SECONDS)
    assert process.returncode == 130
    until(lambda: has_ended(pid), "the peer is killed")


def has_ended(pid: int) -> bool:
    """It is gone; or is a zombie, which nobody has reaped yet."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] in "ZX"
    except (FileNotFoundError, ProcessLookupError):
        return True


def test_a_reader_that_goes_is_the_end_and_no_error() -> None:
    read, write = os.pipe()
    os.close(read)
    with os.fdopen(write, "wb") as gone:
        done = checked("back-end", "--run", RNG, "-v", "--section", "Header", out=gone)
    assert (done.returncode, done.stderr) == (0, "")


def test_output_that_can_not_be_written_is_told() -> None:
    with open(FULL, "wb") as full:
        done = checked("back-end", "--list", out=full)
    assert done.returncode == 1
    assert "cannot write to standard output: No space left on device" in one_line(done.stderr)


class TooMuch(Device):
    """Has a region that nobody can reserve: one rule, an advice, is not kept."""

    queue_sizes = (64,)
    shared_memory = {0: 1 << 46}  # noqa: RUF012

    def process(self, queue: int, chain: DescriptorChain) -> None:
        chain.write(chain.read()[: chain.writable_size])


def test_a_capture_that_has_no_room_ends_the_check_with_its_sum(tmp_path: Path) -> None:
    (tmp_path / "regions_can_be_reserved.pcapng").symlink_to(FULL)
    with listening(TooMuch()) as (path, _):
        done = checked("back-end", path, "--section", "shmem_config", "--captures", tmp_path)
    assert done.returncode == 2, done.stderr
    line = one_line(done.stderr)
    assert f"cannot write the capture {tmp_path}/regions_can_be_reserved.pcapng: No space left on device" in line
    assert line.endswith("; try: another --captures DIR")
    assert done.stdout.splitlines()[-1].endswith(" kept, 1 broken; not kept: 1 advice")


def test_a_report_that_has_no_room_is_told() -> None:
    with listening(TooMuch()) as (path, _):
        done = checked("back-end", path, "--rule", "^there_is_a_queue", "--junit", FULL)
    assert done.returncode == 2
    assert f"{FULL} can't be written: No space left on device; try: a --junit FILE elsewhere" in one_line(done.stderr)
