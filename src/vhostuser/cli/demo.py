"""`vhu demo`: two processes share files through a region, and then a VM does. Every step is checked, not just shown."""

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
from ..queue import Queue
from .arguments import Parser
from .demo_device import ANSWER, REGION
from .demo_proxy import Between
from .demo_record import kept, record_folder
from .demo_stage import Stage
from .demo_vm import act_two, chosen_file
from .info import in_units
from .outcome import CommandError, Exit, interrupt, on_end
from .smaps import areas, resident

PROGRAM: Final = "vhu demo"
EPILOG: Final = """
The second act needs QEMU and a kernel, which `vhu vm fetch` gets once; without them there is the first one only. FILE is
shared read-only, with the directory that it is in, and nothing but this demonstration's guest sees it.

exit status: 0 all proofs hold, 1 one failed, 2 usage, 130 interrupted
"""
TIMEOUT: Final = 2.0
PHOTO, NOTES, INTRUDER = "photo.raw", "notes.raw", "intruder.raw"
SIZES: Final = {PHOTO: 16 << 20, NOTES: 8 << 20, INTRUDER: 4 << 20}
PHOTO_AT, NOTES_AT, INTRUDER_AT = 0, 32 << 20, 36 << 20
NOISE: Final = SIZES[PHOTO] // 64
"""Bytes of its own that this process may gain while it reads the photo: the interpreter allocates as it likes."""


def demo(arguments: list[str]) -> int:
    """Run `vhu demo`; its exit code."""
    options = _parser().parse_args(arguments)
    file = chosen_file(options.file)
    on_end(interrupt)
    began = time.monotonic()
    with tempfile.TemporaryDirectory(prefix="vhu-demo-") as directory:
        stage = Stage(Path(directory))
        try:
            _make_files(stage.directory)
            proxy = _show(stage)
        except VhostUserError as error:
            raise CommandError(f"the demonstration failed: {error}") from None
        act_two(stage, file)
        stage.say(f"\n{stage.proofs} proofs hold, {proxy.requests} messages, {time.monotonic() - began:.2f} s")
    stage.say(kept(proxy.events, Path(options.into) if options.into else record_folder()))
    return Exit.DONE


def _parser() -> Parser:
    text = "Watch two processes share files through a shared memory region, and a VM share one. Each step is checked."
    parser = Parser(PROGRAM, text, epilog=EPILOG)
    parser.add_argument("--file", metavar="FILE", help="the file that the VM reads (default: one of 64 MiB is made for it)")
    parser.add_argument("--into", metavar="FOLDER", help="where a capture and a page of it go (default: the cache)")
    return parser


def _make_files(directory: Path) -> None:
    for name, size in SIZES.items():
        (directory / name).write_bytes(os.urandom(size))


def _show(stage: Stage) -> Between:
    """The two processes; the proxy, which has seen what they exchanged."""
    directory = stage.directory
    with Between(stage.message) as proxy, _back_end(proxy, directory) as process:
        stage.say(f"front-end: this process, pid {os.getpid()}; back-end: pid {process.pid}; files: {directory}")
        stage.say("F→B: a message of the front-end; B→F: of the back-end; = what was answered <after how long>\n")
        with Demonstration(stage, proxy) as shown:
            for title, step in STEPS:
                stage.title(title)
                step(shown)
        stage.check(_status(process) == 0, "the back-end ended by itself, with status 0")
    return proxy


@contextmanager
def _back_end(proxy: Between, directory: Path) -> Iterator[subprocess.Popen[bytes]]:
    """The other process, at its end of the proxy."""
    fd = proxy.back_end.fileno()
    command = [sys.executable, "-m", f"{__package__}.demo_device", str(fd), str(directory)]
    with subprocess.Popen(command, pass_fds=[fd]) as process:
        proxy.back_end.close()
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


class Demonstration(Frontend):
    """The front-end, and the steps that are shown with it."""

    def __init__(self, stage: Stage, proxy: Between) -> None:
        self.stage, self.proxy = stage, proxy
        self.reasons: list[str] = []
        self.queue: Queue | None = None
        super().__init__(proxy.front_end.dup(), reply_timeout=TIMEOUT)

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
        messages, offset = self.proxy.requests, 12345
        old = self.shm[0].read(PHOTO_AT + offset, 1)
        new = bytes([old[0] ^ 0xFF])
        with open(self.path(PHOTO), "r+b", buffering=0) as file:
            file.seek(offset)
            file.write(new)
        seen = self.shm[0].read(PHOTO_AT + offset, 1)
        text = (
            f"byte {offset} of the file went from {old.hex()} to {new.hex()}, and so it did in the window, with no message"
        )
        self.stage.check(seen == new and self.proxy.requests == messages, text)

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
