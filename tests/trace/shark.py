"""tshark with our dissector, as a user who is not root, since it loads no Lua for root."""

from __future__ import annotations

import os
import shlex
import shutil
import subprocess
import tempfile
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from functools import cache
from pathlib import Path
from typing import Final

from tests.vm.conftest import give_up
from vhostuser.trace.capture import create_capture
from vhostuser.trace.dissector import dissector
from vhostuser.trace.event import Event
from vhostuser.vm.tree import FetchError
from vhostuser.vm.tshark import TSHARK

NOBODY: Final = 65534
SECONDS: Final = 50


_WITHOUT_ROOT: Final = ["setpriv", f"--reuid={NOBODY}", f"--regid={NOBODY}", "--clear-groups"]
_BUT_READING: Final = ["--inh-caps=+dac_override", "--ambient-caps=+dac_override"]


@cache
def _someone_else() -> list[str]:
    """The start of a command line of somebody who is not root, but reaches the cache wherever root has it."""
    if os.geteuid():
        return []
    able = subprocess.run([*_WITHOUT_ROOT, *_BUT_READING, "true"], capture_output=True, check=False).returncode == 0
    return [*_WITHOUT_ROOT, *_BUT_READING] if able else _WITHOUT_ROOT


class Shark:
    """A place with the dissector in it, and tshark started there."""

    def __init__(self, place: Path) -> None:
        try:
            self._command = TSHARK.command()
        except FetchError as error:
            give_up(str(error))
        self.home = place / "home"
        self.home.mkdir()
        self._environment = {"HOME": str(self.home), "PATH": "/usr/bin:/bin", "LC_ALL": "C.UTF-8", "TZ": "UTC"}
        self._place = place
        self._script = place / "vhostuser.lua"
        self._script.write_text(dissector())
        place.chmod(0o755)
        if os.geteuid() == 0:
            os.chown(self.home, NOBODY, NOBODY)

    def capture(self, events: Iterable[Event], name: str = "a.pcapng") -> Path:
        """These events in a file that tshark can read."""
        path = self._place / name
        writer = create_capture(path)
        for event in events:
            writer.write(event)
        writer.close()
        return path

    def file(self, data: bytes, name: str) -> Path:
        """These bytes in a file that tshark can read."""
        path = self._place / name
        path.write_bytes(data)
        return path

    def run(self, path: Path, *options: str, plain: bool = False) -> str:
        """What it prints of a capture; it may complain of nothing. With `plain` it has no dissector but installed ones."""
        script = [] if plain else ["-X", f"lua_script:{self._script}"]
        done = subprocess.run(
            [*_someone_else(), *self._command, *script, "-r", str(path), *options],
            env=self._environment,
            capture_output=True,
            text=True,
            timeout=SECONDS,
            check=False,
        )
        assert not done.stderr, done.stderr
        assert not done.returncode
        return str(done.stdout)

    def start(self, *options: str) -> subprocess.Popen[str]:
        """It at work, with what is installed at home; its stdout and stderr are pipes.

        It looks for dumpcap beside the program that runs, which is the loader: so that is started from here. There has to
        be a folder of extcap programs of the system, too.
        """
        loader, *rest = self._command
        beside = self._place / "bin"
        beside.mkdir()
        (self._place / "lib" / Path(loader).parent.name / "wireshark/extcap").mkdir(parents=True)
        shutil.copy(loader, beside / "tshark")
        words = [loader, *rest[:-1], str(Path(rest[-1]).with_name("dumpcap"))]
        (beside / "dumpcap").write_text(f'#!/bin/sh\nexec {shlex.join(words)} "$@"\n')
        (beside / "dumpcap").chmod(0o755)
        return subprocess.Popen(
            [*_someone_else(), str(beside / "tshark"), *rest, *options],
            env=self._environment | {"PYTHONPATH": os.environ.get("PYTHONPATH", "")},
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )

    def table(self, path: Path, *fields: str, filter: str = "") -> list[list[str]]:
        """Fields, or expressions, of each packet."""
        wanted = [word for field in fields for word in ("-e", field)]
        chosen = ["-Y", filter] if filter else []
        lines = self.run(
            path, "-2", *chosen, "-T", "fields", "-E", "separator=|", "-E", "aggregator=;", *wanted
        ).splitlines()
        return [line.split("|") for line in lines]

    def lines(self, path: Path) -> list[str]:
        """The Info column of each packet."""
        return [row[0] for row in self.table(path, "_ws.col.info")]


@contextmanager
def shark_tank() -> Iterator[Shark]:
    """A shark in a directory that others can reach: pytest's own it closes to them whenever another session begins."""
    with tempfile.TemporaryDirectory(prefix="shark") as place:
        yield Shark(Path(place))
