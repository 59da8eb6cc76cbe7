"""Hold one peer to the rules, within a time, and keep what came of it."""

from __future__ import annotations

import json
import os
import shlex
import signal
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path

from vhostuser.vm.tree import FetchError

from .causes import cause_of
from .peers import Peer
from .store import CRASHED, FINDINGS, LARGEST, TOP, Run, Verdict, plain, save, verdict_of, without_paths


def run(peer: Peer) -> Run:
    """Run all rules on a peer and save the result. A peer that can't be had is a result, too."""
    with tempfile.TemporaryDirectory(prefix="vhu-matrix") as name:
        folder = Path(name)
        try:
            words = peer.start(folder)
        except FetchError as error:
            found = Run(today(), {}, peer.check(), over=f"not run: {plain(str(error))}")
        else:
            found = _checked(peer, words, folder)
            keep_captures(peer.name, found.verdicts, folder / "captures")
    save(peer.name, found)
    return found


def today() -> str:
    """The date of a run."""
    return datetime.now(UTC).date().isoformat()


def _checked(peer: Peer, words: Sequence[str], folder: Path) -> Run:
    """Hold it to its rules, then to those alone that it did not keep: what an earlier rule left behind is none of theirs.

    A crash counts, be it seen once.
    """
    found = _held(peer, words, folder, peer.rules)
    if found.over or not found.bad:
        return found
    again = _held(peer, words, folder, f"^({'|'.join(verdict.rule for verdict in found.bad)})$")
    kept = {verdict.rule: verdict for verdict in again.verdicts if not verdict.is_bad}
    verdicts = [v if v.result == CRASHED else kept.get(v.rule, v) for v in found.verdicts]
    return replace(found, verdicts=verdicts)


def _held(peer: Peer, words: Sequence[str], folder: Path, rules: str) -> Run:
    some = ["--rule", rules] if rules else []
    captures = ["--captures", str(folder / "captures")]
    command = [sys.executable, "-m", "vhostuser", "check", peer.side, "--json", *peer.options(), *some, *captures]
    code, out, said = within([*command, "--run", shlex.join(words)], peer.seconds)
    verdicts = [verdict_of(json.loads(line)) for line in out.splitlines() if line.startswith("{") and line.endswith("}")]
    return Run(today(), peer.versions(), peer.check(), _over(code, said, peer.seconds), verdicts)


def _over(code: int | None, said: str, seconds: int) -> str:
    """Why a run was not whole, if it was not: 0 and 1 are the exit codes of one that was."""
    if code is None:
        return f"ended after {seconds} s, its time"
    return "" if code in (0, 1) else plain((said.strip().splitlines() or [f"exit status {code}"])[0])


def within(command: Sequence[str], seconds: float) -> tuple[int | None, str, str]:
    """Run a command, and what it starts, for so long at most: its exit code (None if it was ended), output, complaints."""
    with tempfile.TemporaryFile("w+") as out, tempfile.TemporaryFile("w+") as said:
        process = subprocess.Popen(
            command, cwd=TOP, stdin=subprocess.DEVNULL, stdout=out, stderr=said, start_new_session=True
        )
        code = None
        try:
            with suppress(subprocess.TimeoutExpired):
                code = process.wait(seconds)
        finally:
            _end(process)
        out.seek(0)
        said.seek(0)
        return code, out.read(), said.read()


def _end(process: subprocess.Popen[bytes]) -> None:
    """End it, if it has not ended, in a way in which it ends what it has started."""
    if process.poll() is None:
        process.send_signal(signal.SIGINT)
        with suppress(subprocess.TimeoutExpired):
            process.wait(10)
    with suppress(ProcessLookupError):
        os.killpg(process.pid, signal.SIGKILL)
    process.wait()


def keep_captures(peer: str, verdicts: Sequence[Verdict], captures: Path) -> None:
    """Keep the capture that goes with each finding, if it is small; those of the run before go."""
    place = FINDINGS / peer
    for old in place.glob("[a-z]*.pcapng"):
        old.unlink()
    shown = {cause_of(peer, verdict).slug: verdict for verdict in reversed(_by_weight(verdicts))}
    for verdict in shown.values():
        capture = captures / f"{verdict.rule}.pcapng"
        if capture.exists() and capture.stat().st_size <= LARGEST:
            place.mkdir(parents=True, exist_ok=True)
            (place / capture.name).write_bytes(without_paths(capture.read_bytes()))


def _by_weight(verdicts: Sequence[Verdict]) -> list[Verdict]:
    return sorted((each for each in verdicts if each.is_bad), key=weight)


def weight(verdict: Verdict) -> tuple[int, int, str]:
    """What stands for a finding: of the highest level, with the shortest conversation."""
    length = sum(len(line) for line in verdict.sent) or 1 << 20
    return ("MUST", "SHOULD", "advice").index(verdict.level), length, verdict.rule
