"""QEMU and a puppet back-end, brought together for one test."""

from __future__ import annotations

import json
import os
import random
import socket
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path
from types import TracebackType
from typing import Any, Final, Self

from vhostuser.vm.qmp import Wire

from .machine import QTestMachine, generic_device
from .puppet import Order, Plan

TOP: Final = Path(__file__).resolve().parents[2]
SECONDS: Final = 10.0
PAGE: Final = 4096
MIB: Final = 1 << 20


class Refused(Exception):
    """The puppet could not obey: the name of its exception, then its text."""


class PuppetProcess:
    """A context manager around a back-end that listens at `path`, with its strings in our hands."""

    def __init__(self, path: Path, plan: Plan) -> None:
        self.path, self._plan = path, plan

    def __enter__(self) -> Self:
        with ExitStack() as opened:
            self._said = opened.enter_context(tempfile.TemporaryFile("a+b"))
            control, theirs = socket.socketpair()
            opened.enter_context(control)
            with theirs, socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as listener:
                listener.bind(os.fspath(self.path))
                listener.listen(1)
                self.process = self._start(listener.fileno(), theirs.fileno())
            self._wire = Wire(control, SECONDS)
            self._opened = opened.pop_all()
        return self

    def _start(self, listener: int, control: int) -> subprocess.Popen[bytes]:
        plan = {name: getattr(self._plan, name) for name in Plan.__slots__}
        words = [*python(), "-m", "tests.vm.puppet", str(listener), str(control), json.dumps(plan)]
        return subprocess.Popen(
            words, cwd=TOP, stdin=subprocess.DEVNULL, stdout=self._said, stderr=self._said, pass_fds=(listener, control)
        )

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        with self._opened:
            self.terminate()
            if error is not None:
                error.add_note(f"the back-end ended with {self.process.returncode} and has said: {self.log or 'nothing'}")
            elif self.process.returncode or any(word in self.log for word in ("Traceback", "Exception ignored")):
                raise AssertionError(f"the back-end ended with {self.process.returncode} and has said: {self.log}")

    def terminate(self) -> int:
        """SIGTERM, and wait for the end; gives the exit code."""
        self.process.terminate()  # does nothing if it has ended
        try:
            return self.process.wait(SECONDS)
        except subprocess.TimeoutExpired:
            self.process.kill()
            self.process.wait(SECONDS)
            raise

    @property
    def log(self) -> str:
        """All that the back-end has said so far."""
        return os.pread(self._said.fileno(), 1 << 20, 0).decode(errors="replace")

    def call(self, do: str, **arguments: object) -> object:
        """Give an order from outside; what it returned, or Refused."""
        self._wire.send(json.dumps({"do": do, **arguments}))
        return outcome(json.loads(self._wire.receive()))

    def mappings(self, shmid: int = 0) -> list[tuple[int, ...]]:
        """What the back-end believes to be mapped: (shm_offset, len, fd_offset, writable)."""
        return [tuple(row) for row in self.rows("mappings", shmid=shmid)]

    def heard(self) -> list[str]:
        """The requests of the front-end so far, by name; with an exclamation mark where it set need_reply."""
        return [name for name, _ in self.heard_running()]

    def heard_running(self) -> list[tuple[str, bool]]:
        """The same, and whether mapping was possible after each."""
        return [(str(name), bool(running)) for name, running in self.rows("heard")]

    def told(self, moment: str) -> list[list[Order]]:
        """What came of the orders for this moment, one list for each time that it came."""
        return [orders for name, orders in self.rows("told") if name == moment]

    def wait_told(self, moment: str, times: int) -> None:
        """Wait until this moment has come that often and the orders for it were obeyed."""
        self.call("wait_told", moment=moment, times=times, seconds=SECONDS)

    def counters(self) -> dict[str, int]:
        """The back-end's counters."""
        counters = self.call("counters")
        return dict(counters) if isinstance(counters, dict) else {}

    def rows(self, do: str, **arguments: object) -> list[Any]:
        """`call` for what gives a list."""
        rows = self.call(do, **arguments)
        return rows if isinstance(rows, list) else [rows]


def python() -> list[str]:
    """This interpreter with the same switches for asserts, and warnings as errors."""
    return [sys.executable, *(["-O"] if sys.flags.optimize else []), "-W", "error"]


def outcome(answer: Order) -> object:
    """What an order returned, or Refused."""
    if "error" in answer:
        raise Refused(f"{answer['error']}: {answer['text']}")
    return answer["result"]


def through_queue(machine: QTestMachine, do: str, *, queue: int = 0, **arguments: object) -> object:
    """Give an order as the driver; what it returned, or Refused."""
    return outcome(json.loads(machine.exchange(queue, json.dumps({"do": do, **arguments}).encode(), 8192)))


@contextmanager
def running(
    *,
    regions: dict[int, int] | None = None,
    queues: Sequence[int] = (128,),
    moments: dict[str, list[Order]] | None = None,
    dialect: str = "released",
    bring_up: bool = True,
) -> Iterator[tuple[QTestMachine, PuppetProcess]]:
    """QEMU with a puppet for its device, up to DRIVER_OK if `bring_up`. Both must be well in the end."""
    sizes = {str(shmid): size for shmid, size in (regions if regions is not None else {0: 4 * MIB}).items()}
    plan = Plan(regions=sizes, queues=list(queues), moments=moments or {}, dialect=dialect)
    device = generic_device(queues=len(queues), queue_size=max(queues))
    with (
        tempfile.TemporaryDirectory(prefix="vhu") as folder,
        PuppetProcess(Path(folder) / "s", plan) as puppet,
        QTestMachine(puppet.path, device=device, seconds=SECONDS) as machine,
    ):
        if bring_up:
            machine.bring_up()
        yield machine, puppet
        check_well(machine)


def check_well(machine: QTestMachine) -> None:
    """QEMU runs and answers, or has ended in good order because it was told to."""
    if machine.alive():
        machine.qmp.execute("query-status")
    elif machine.process.returncode:
        raise AssertionError(f"QEMU ended with {machine.process.returncode}")


def make_file(path: Path, size: int, seed: int = 1) -> bytes:
    """Fill a file with bytes that differ from page to page and from seed to seed; gives them."""
    content = random.Random(seed).randbytes(size)
    path.write_bytes(content)
    return content
