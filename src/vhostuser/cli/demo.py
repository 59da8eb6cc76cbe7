"""`vhu demo`: two processes share files through a region. Every step is checked, not just shown."""

from __future__ import annotations

import hashlib
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Final

from ..errors import MemoryFault, VhostUserError
from ..frontend import Frontend
from ..limited_log import printable
from ..queue import Queue
from .arguments import Parser
from .bar import bar
from .demo_device import ANSWER, REGION
from .info import in_units
from .outcome import CommandError, Exit, colours, interrupt, on_end, put
from .relay import Relay
from .smaps import areas, resident

PROGRAM: Final = "vhu demo"
TIMEOUT: Final = 2.0
PHOTO, NOTES, INTRUDER = "photo.raw", "notes.raw", "intruder.raw"
SIZES: Final = {PHOTO: 16 << 20, NOTES: 8 << 20, INTRUDER: 4 << 20}
PHOTO_AT, NOTES_AT, INTRUDER_AT = 0, 32 << 20, 36 << 20
NOISE: Final = SIZES[PHOTO] // 64
"""Bytes of its own that this process may gain while it reads the photo: the interpreter allocates as it likes."""
GREEN, RED, BOLD = 32, 31, 1


def demo(arguments: list[str]) -> int:
    """Run `vhu demo`; its exit code."""
    parser = Parser(PROGRAM, "Watch two processes share files through a shared memory region. Each step is checked.")
    parser.parse_args(arguments)
    on_end(interrupt)
    try:
        with tempfile.TemporaryDirectory(prefix="vhu-demo-") as directory:
            _make_files(Path(directory))
            _show(Path(directory))
    except VhostUserError as error:
        raise CommandError(f"the demonstration failed: {error}") from None
    return Exit.DONE


def _make_files(directory: Path) -> None:
    for name, size in SIZES.items():
        (directory / name).write_bytes(os.urandom(size))


def _show(directory: Path) -> None:
    began, stage = time.monotonic(), Stage(directory)
    with Relay(stage.message) as relay, _back_end(relay, directory) as process:
        stage.say(f"front-end: this process, pid {os.getpid()}; back-end: pid {process.pid}; files: {directory}")
        stage.say("F>B: a message of the front-end; B>F: of the back-end; = what was answered <after how long>\n")
        with Demonstration(stage, relay) as shown:
            for title, step in STEPS:
                stage.title(title)
                step(shown)
        stage.check(_status(process) == 0, "the back-end ended by itself, with status 0")
    stage.say(f"\n{stage.proofs} proofs hold, {relay.messages} messages, {time.monotonic() - began:.2f} s")


@contextmanager
def _back_end(relay: Relay, directory: Path) -> Iterator[subprocess.Popen[bytes]]:
    """The other process, at its end of the relay."""
    fd = relay.back_end.fileno()
    command = [sys.executable, "-m", f"{__package__}.demo_device", str(fd), str(directory)]
    with subprocess.Popen(command, pass_fds=[fd]) as process:
        relay.back_end.close()
        try:
            yield process
        finally:
            process.kill()


def _status(process: subprocess.Popen[bytes]) -> int | None:
    """The exit code of the back-end, once it has ended; None if it does not."""
    try:
        return process.wait(TIMEOUT)
    except subprocess.TimeoutExpired:
        return None


class Stage:
    """Where the demonstration is shown, and its proofs are counted."""

    def __init__(self, directory: Path) -> None:
        self.directory = directory
        self.proofs = 0
        self._colour = colours()
        self._steps = 0

    def say(self, text: str) -> None:
        """A line of text."""
        put(text)

    def title(self, text: str) -> None:
        """The heading of a step."""
        self._steps += 1
        put(self._painted(BOLD, f"{self._steps}. {text}"))

    def message(self, text: str) -> None:
        """A message that went from one process to the other."""
        put(f"   {printable(text)}")

    def check(self, holds: bool, text: str) -> None:
        """A proof: what was checked. CommandError if it does not hold."""
        if not holds:
            put(f"   {self._painted(RED, 'FAILED')} {text}")
            raise CommandError(f"this proof failed: {text}", "try: vhu info, or report it with the output above")
        self.proofs += 1
        put(f"   {self._painted(GREEN, 'ok')} {text}")

    def region(self, frontend: Frontend, count: int) -> None:
        """The region as the kernel has it, which has to be what the front-end believes: `count` mappings."""
        region = frontend.shm[0]
        mapped = areas(region.address, region.size)
        put(f"   {bar(region.address, region.size, mapped, colour=self._colour)}")
        kernel = [(area.start - region.address, area.end - area.start, area.offset, area.writable) for area in mapped]
        holds = kernel == list(region.mappings) and len(kernel) == count
        self.check(holds, f"the kernel has what the front-end believes: {len(kernel)} mappings")

    def _painted(self, colour: int, text: str) -> str:
        return f"\033[{colour}m{text}\033[0m" if self._colour else text


class Demonstration(Frontend):
    """The front-end, and the steps that are shown with it."""

    def __init__(self, stage: Stage, relay: Relay) -> None:
        self.stage, self.relay = stage, relay
        self.reasons: list[str] = []
        self.queue: Queue | None = None
        super().__init__(relay.front_end.dup(), reply_timeout=TIMEOUT)

    def refused(self, request: str, reason: str) -> None:
        """Show why a request was refused."""
        self.reasons.append(reason)
        self.stage.message(f"front-end: refused: {reason}")

    def ask(self, request: str) -> str:
        """Let the driver send a request to the device; what it answers."""
        self.stage.say(f"   driver: {request}")
        answer = self.queue.exchange(request.encode(), ANSWER, timeout=TIMEOUT).decode() if self.queue else ""
        self.stage.say(f"   device: {answer}")
        return answer

    def path(self, name: str) -> Path:
        """A file of the back-end's."""
        return self.stage.directory / name

    def begin(self) -> None:
        """Memory, a queue, an empty region."""
        self.share_memory(1 << 20)
        self.queue = self.start_queue(0, size=64)
        self.stage.check(self.shm[0].size == REGION, f"the back-end has a region 0 of {in_units(REGION)}")
        self.stage.region(self, 0)

    def map_photo(self) -> None:
        """A read-only mapping."""
        self.stage.check(self.ask(f"map {PHOTO} {PHOTO_AT:#x} ro") == "done", "the device has its answer")
        self.stage.region(self, 1)

    def no_copy(self) -> None:
        """The same memory, not the same bytes twice."""
        view = self.shm[0].view(PHOTO_AT, SIZES[PHOTO], unsafe=True)
        before = resident()
        digest = hashlib.sha256(view).digest()
        after = resident()
        view.release()
        grown = f"{(after.own - before.own) >> 10:+} KiB, file pages {(after.files - before.files) >> 10:+} KiB"
        self.stage.check(after.own - before.own < NOISE, f"16 MiB were read through the window: RssAnon {grown}")
        with open(self.path(PHOTO), "rb") as file:
            self.stage.check(digest == hashlib.file_digest(file, "sha256").digest(), "they are the file's bytes")
        area = areas(self.shm[0].address, REGION)[0]
        inode = self.path(PHOTO).stat().st_ino
        self.stage.check(area.inode == inode, f"smaps: {area.start:x} {area.access} inode {area.inode}, that of {PHOTO}")
        self._change_host_file()

    def _change_host_file(self) -> None:
        messages, offset = self.relay.messages, 12345
        old = self.shm[0].read(PHOTO_AT + offset, 1)
        new = bytes([old[0] ^ 0xFF])
        with open(self.path(PHOTO), "r+b", buffering=0) as file:
            file.seek(offset)
            file.write(new)
        seen = self.shm[0].read(PHOTO_AT + offset, 1)
        text = (
            f"byte {offset} of the file went from {old.hex()} to {new.hex()}, and so it did in the window, with no message"
        )
        self.stage.check(seen == new and self.relay.messages == messages, text)

    def map_notes(self) -> None:
        """A read-write mapping, and a write."""
        self.stage.check(self.ask(f"map {NOTES} {NOTES_AT:#x} rw") == "done", "the device has its answer")
        self.stage.region(self, 2)
        self.shm[0].write(NOTES_AT, b"written by the driver")
        with open(self.path(NOTES), "rb") as file:
            written = file.read(21) == b"written by the driver"
        self.stage.check(written, f"what the driver writes into the window is in {NOTES}")

    def write_photo(self) -> None:
        """Read-only means read-only."""
        before = self.path(PHOTO).read_bytes()
        refusal = _fault(lambda: self.shm[0].write(PHOTO_AT, b"not for you"))
        self.stage.check("read-only" in refusal, f"a write into {PHOTO} is refused: {refusal}")
        self.stage.check(self.path(PHOTO).read_bytes() == before, f"{PHOTO} is as it was")

    def unmap_photo(self) -> None:
        """A whole mapping goes."""
        self.stage.check(self.ask(f"unmap {PHOTO_AT:#x} {SIZES[PHOTO]:#x}") == "done", "the device has its answer")
        self.stage.region(self, 1)
        refusal = _fault(lambda: self.shm[0].read(PHOTO_AT, 1))
        self.stage.check(bool(refusal), f"reading there is refused: {refusal}")

    def overlap(self) -> None:
        """Two mappings never share a byte."""
        before = self.shm[0].mappings
        self.ask("forget")
        answer = self.ask(f"map {INTRUDER} {INTRUDER_AT:#x} ro")
        self.stage.check("refused" in answer, "the device was told no")
        self.stage.check(any("overlaps" in reason for reason in self.reasons), "because the two overlap")
        self.stage.check(self.shm[0].mappings == before, "what was mapped before still is")
        self.stage.region(self, 1)

    def begin_anew(self) -> None:
        """A reset takes everything."""
        self.reset()
        self.stage.region(self, 0)
        self.stage.check(not self.shm[0].mappings, "nothing is mapped any more")


def _fault(access: Callable[[], object]) -> str:
    """What the MemoryFault of an access says; empty if there was none."""
    try:
        access()
    except MemoryFault as error:
        return str(error)
    return ""


STEPS: Final[tuple[tuple[str, Callable[[Demonstration], None]], ...]] = (
    ("The two have shaken hands; memory is shared, and a queue starts", Demonstration.begin),
    (f"The device maps {PHOTO}, {in_units(SIZES[PHOTO])}, read-only", Demonstration.map_photo),
    ("The driver reads it: nothing is copied", Demonstration.no_copy),
    (f"The device maps {NOTES}, {in_units(SIZES[NOTES])}, read-write, and the driver writes", Demonstration.map_notes),
    (f"The driver may not write into {PHOTO}", Demonstration.write_photo),
    (f"The device takes {PHOTO} away", Demonstration.unmap_photo),
    (f"A device that forgot {NOTES} asks for a place in the midst of it", Demonstration.overlap),
    ("The driver resets the device", Demonstration.begin_anew),
)
