"""`vhu` itself, `vhu info` and `vhu demo`."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from vhostuser import VhostUserError
from vhostuser.cli import demo
from vhostuser.cli.demo_stage import Stage
from vhostuser.cli.drive import DEVICES
from vhostuser.cli.main import COMMANDS
from vhostuser.cli.outcome import CommandError
from vhostuser.version import VERSION

from .programs import RNG, SHM, VHU, Program, attach, listening, one_line, run, serving, until, vhu, words

REGION = ("--region", "0:64M", "--region", "7:4K")


# The programs


@pytest.mark.parametrize("command", [[], ["--help"], ["-h"], ["--version"], ["-V"]])
def test_vhu_says_what_it_is(command: list[str]) -> None:
    done = run(VHU, *command)
    assert (done.returncode, done.stderr) == (0, "")
    assert VERSION in done.stdout
    assert command in (["--version"], ["-V"]) or all(f"vhu {name}" in done.stdout for name in COMMANDS)


def test_the_overview_names_every_device_that_can_be_driven() -> None:
    lines = run(VHU, "--help").stdout.partition("vhu drive")[2].partition("vhu explain")[0]
    named = set(re.findall(r"\w+", lines))
    assert named >= {"console", *DEVICES, *(action for actions in DEVICES.values() for action in actions)}


@pytest.mark.parametrize("name", COMMANDS)
def test_each_command_has_help(name: str) -> None:
    done = run(VHU, name, "--help")
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout.startswith(f"usage: vhu {name}")


@pytest.mark.parametrize(
    ("arguments", "text"),
    [
        (["atach"], "there is no command 'atach'; did you mean attach?"),
        (["\x1b[31m"], "there is no command '\\x1b[31m'; try: vhu --help"),
        (["info"], "required: SOCKET"),
        (["info", "s", "--timeout", "-1"], "argument --timeout"),
        (["info", "s", "--timeout", "nan"], "argument --timeout"),
        (["info", "s", "more"], "unrecognized arguments: more"),
        (["demo", "--fast"], "unrecognized arguments: --fast"),
        (["explain"], "required: NAME|BIT|HEX"),
        (["attach", "s", "--start-queues", "257"], "argument --start-queues"),
        (["attach", "s", "--max-maps", "-1"], "argument --max-maps"),
    ],
)
def test_a_wrong_command_line_is_one_line_and_exit_code_2(arguments: list[str], text: str) -> None:
    done = run(VHU, *arguments)
    assert (done.returncode, done.stdout) == (2, "")
    assert text in one_line(done.stderr)


def test_the_installed_programs_are_these() -> None:
    for program in ("vhu", "vhu-shm"):
        path = Path(sys.executable).with_name(program)
        if not path.exists():
            pytest.skip("the package is not installed here: `make setup` does that")
        done = subprocess.run([path, "--help"], capture_output=True, text=True, timeout=30, check=False)
        assert done.returncode == 0
        assert program in done.stdout


@pytest.mark.parametrize("command", [["explain", "22"], ["--help"], ["demo"]])
def test_output_that_nobody_reads_ends_it_quietly(command: list[str]) -> None:
    reader, writer = os.pipe()
    os.close(reader)
    with subprocess.Popen(words(VHU, *command), stdout=writer, stderr=subprocess.PIPE) as process:
        os.close(writer)
        _, said = process.communicate(timeout=30)
    assert (process.returncode, said) == (0, b"")


def test_output_that_can_not_be_written_is_a_failure() -> None:
    with open("/dev/full", "w") as full:
        done = subprocess.run(
            words(VHU, "explain", "22"), stdout=full, stderr=subprocess.PIPE, text=True, timeout=30, check=False
        )
    assert done.returncode == 1
    assert "cannot write to standard output: No space left on device (ENOSPC)" in one_line(done.stderr)


# vhu info


def test_info_says_what_a_back_end_offers(sock: Path, file: Path) -> None:
    with serving(sock, *REGION, "--map", f"0:0:{file}", "--reconnect", "--num-queues", "3") as back:
        done = run(VHU, "info", sock, "--json")
        assert (done.returncode, done.stderr) == (0, "")
        offer = json.loads(done.stdout)
        assert offer["regions"] == {"0": 64 << 20, "7": 4096}
        assert (offer["queues"], offer["dialect"], offer["diagnosis"]) == (3, "released", None)
        assert {"SHMEM", "BACKEND_REQ", "REPLY_ACK"} <= set(offer["protocol_features"])
        assert int(offer["protocol_features_mask"], 16) >> 22 & 1
        people = run(VHU, "info", sock).stdout
        assert "shared memory regions: 0: 64 MiB, 7: 4 KiB" in people
        with attach(sock) as front:
            assert front.event("ready")["regions"] == offer["regions"]
        back.signal(signal.SIGTERM)
        assert back.end() == 0


@pytest.mark.parametrize(("spoken", "hint"), [("20", "draft"), ("21", "rust-vmm-0.16")])
def test_info_has_a_diagnosis_for_another_dialect(sock: Path, spoken: str, hint: str) -> None:
    with serving(sock, *REGION, "--shmem-dialect", spoken, "--reconnect"):
        assert f"try --shmem-dialect {hint}" in json.loads(run(VHU, "info", sock, "--json").stdout)["diagnosis"]
        done = run(VHU, "info", sock)
        assert f"try --shmem-dialect {hint}" in done.stdout
        assert json.loads(run(VHU, "info", sock, "--json", "--shmem-dialect", spoken).stdout)["regions"]["7"] == 4096


def test_info_has_no_diagnosis_for_a_device_without_regions(sock: Path) -> None:
    with listening(sock, "--reconnect", module=RNG) as back:
        offer = json.loads(run(VHU, "info", sock, "--json").stdout)
        assert {"GET_VRING_BASE_INFLIGHT", "GPA_ADDRESSES"} <= set(offer["protocol_features"])
        assert (offer["regions"], offer["diagnosis"]) == ({}, None)
        back.signal(signal.SIGTERM)
        assert back.end() == 0
        assert "refused" not in back.said


def test_info_of_nobody_is_exit_code_3(sock: Path) -> None:
    done = run(VHU, "info", sock)
    assert done.returncode == 3
    assert "No such file or directory (ENOENT); try: start the back-end first" in one_line(done.stderr)


def test_info_of_somebody_busy_is_exit_code_3(sock: Path) -> None:
    with serving(sock, *REGION), attach(sock) as front:
        front.event("ready")
        done = run(VHU, "info", sock, "--timeout", "0.2")
        assert done.returncode == 3
        assert "no other front-end uses it" in one_line(done.stderr)


# vhu demo


def test_the_demo_shows_and_proves_all_that_takes_no_vm(tmp_path: Path) -> None:
    done = run(VHU, "demo", cwd=tmp_path, VHOSTUSER_CACHE=str(tmp_path / "none"))
    assert (done.returncode, done.stderr) == (0, "")
    lines = [line.strip() for line in done.stdout.splitlines()]
    assert lines[-5].endswith("this enables it: make vm (or: vhu vm fetch)")
    assert lines[-3].startswith("23 proofs hold, 21 messages, ")
    kept = tmp_path / "none" / "demo"
    assert lines[-2] == f"all of it again: vhu read {kept / 'demo.pcapng'}"
    assert lines[-1] == f"and as a page:   xdg-open {kept / 'demo.html'}"
    assert sum(line.startswith("ok ") for line in lines) == 23
    assert sum(" F→B " in line or " B→F " in line for line in lines) == 21
    assert sum(line.startswith("|") for line in lines) == 6
    for shown in (
        "B→F SHMEM_MAP shmid=0 0x0+0x1000000 ro fd=",
        "B→F SHMEM_UNMAP shmid=0",
        "need_reply = 1 <",  # the refused overlap
        "F→B RESET_DEVICE need_reply = 0 <",
        "a write into photo.raw is refused: region 0: 0x0 is mapped read-only",
    ):
        assert shown in done.stdout, shown
    assert sorted(each.name for each in tmp_path.rglob("*")) == ["demo", "demo.html", "demo.pcapng", "none"]
    again = run(VHU, "read", kept / "demo.pcapng")
    assert sum(" F→B " in line or " B→F " in line for line in again.stdout.splitlines()) == 21
    assert (kept / "demo.html").read_text().startswith("<!doctype html>")


def test_the_demo_goes_on_where_nothing_can_be_kept(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    done = run(VHU, "demo", "--into", tmp_path / "file", VHOSTUSER_CACHE=str(tmp_path / "none"))
    assert (done.returncode, done.stderr) == (0, "")
    last = done.stdout.splitlines()[-1]
    assert last.startswith("what passed is not kept: ")
    assert last.endswith("; try: vhu demo --into FOLDER")


def test_a_proof_of_the_demo_can_fail(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    stage = Stage(tmp_path)
    with pytest.raises(CommandError, match="this proof failed: it holds"):
        stage.check(False, "it holds")
    assert "FAILED it holds" in capfd.readouterr().out
    assert stage.proofs == 0


@pytest.mark.parametrize(
    ("name", "broken"),
    [
        ("map_photo", "no mapping"),
        ("no_copy", "another file"),
        ("map_notes", "no write"),
        ("write_photo", "a write that works"),
        ("unmap_photo", "no unmap"),
        ("overlap", "no refusal"),
        ("begin_anew", "no reset"),
    ],
)
def test_each_step_of_the_demo_notices_a_front_end_that_lies(
    name: str, broken: str, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    """One thing is wrong, from that step on: its proof says so."""
    lies = {
        "no mapping": ("ask", lambda self, request: "done"),
        "no unmap": ("ask", lambda self, request: "done"),
        "no refusal": ("ask", lambda self, request: "done"),
        "no reset": ("reset", lambda self: None),
        "no write": ("path", lambda self, name: Path(__file__)),
        "another file": ("path", lambda self, name: Path(__file__)),
        "a write that works": ("path", None),
    }
    attribute, lie = lies[broken]
    honest = getattr(demo.Demonstration, name)

    def lying(self: demo.Demonstration) -> None:
        if lie:
            setattr(self, attribute, lie.__get__(self))
        else:
            monkeypatch.setattr(demo, "_fault", lambda access: "")
        honest(self)

    steps = tuple((title, lying if step is honest else step) for title, step in demo.STEPS)
    monkeypatch.setattr(demo, "STEPS", steps)
    with pytest.raises((CommandError, VhostUserError)):
        demo.demo([])
    out = capfd.readouterr().out
    assert "FAILED" in out


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_ends_the_demo_and_its_other_process(number: signal.Signals) -> None:
    with Program(words(VHU, "demo")) as program:
        first = program.line()
        other = int(first.split("back-end: pid ")[1].split(";")[0])
        place = Path(first.split("files: ")[1])
        program.signal(number)
        while program.line():
            pass
        assert program.end() in (0, 130)
        until(lambda: not Path(f"/proc/{other}").exists(), "the back-end has ended")
        assert not place.exists()


INTERRUPTED_IN_A_DESTRUCTOR = """
import signal, time
from vhostuser.cli.outcome import interrupt, on_end, run
class Last:
    def __del__(self):
        signal.raise_signal(signal.SIGTERM)
def command():
    on_end(interrupt)
    Last()
    time.sleep(60)
    return 0
raise SystemExit(run("test", command))
"""


def test_an_interrupt_that_a_destructor_loses_comes_again() -> None:
    with Program([sys.executable, "-W", "error", "-c", INTERRUPTED_IN_A_DESTRUCTOR]) as program:
        assert program.end() == 130
        assert program.said == ""


def test_vhu_is_also_python_m_vhostuser_and_shm_a_program_of_its_own() -> None:
    with vhu("--version") as program:
        assert program.line() == f"vhu {VERSION}"
    assert run(SHM, "--help").returncode == 0
