"""Ways in which a back-end ends QEMU, each as a script: `python -m tests.matrix.kills K1` says how QEMU ended.

QEMU runs without a guest: the driver is this program, over qtest. A back-end that does what is told here runs in a thread.
"""

from __future__ import annotations

import contextlib
import json
import os
import queue
import signal
import socket
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from tests.vm.machine import QTestMachine, generic_device, usual_arguments
from vhostuser.conformance.frontend_bench import FrontendBench, Reach
from vhostuser.conformance.report import conversation_of
from vhostuser.protocol.framing import Frame
from vhostuser.protocol.numbers import MAP_RW, NEED_REPLY, PAGE, VERSION, BackendRequest, FrontendRequest
from vhostuser.protocol.payloads import Mmap
from vhostuser.testing.files import memory_file
from vhostuser.trace.capture import create_capture
from vhostuser.trace.event import Event
from vhostuser.transport.fds import OwnedFd

SECONDS: Final = 10.0
PATIENCE: Final = 60.0
"""Seconds in which QEMU ends, if it does: hundreds of mappings take half of them."""
STEP: Final = 0.05
WINDOW: Final = 1 << 23
MAP: Final = BackendRequest.SHMEM_MAP
Act = Callable[["Stage"], None]
Order = Callable[[FrontendBench], object]


@dataclass(frozen=True, slots=True)
class Kill:
    """One way."""

    title: str
    what: str
    effect: str
    act: Act
    listens: bool = False
    """QEMU is the one that listens."""


class Stage:
    """QEMU, and the back-end in its thread, which answers as a right one would and obeys orders in between."""

    def __init__(self, path: Path, *, listens: bool) -> None:
        self.events: list[Event] = []
        self._path, self._listens = path, listens
        self._orders: queue.SimpleQueue[Order] = queue.SimpleQueue()
        self._over = threading.Event()
        arguments = usual_arguments(str(path), generic_device(config_size=64))
        if listens:
            arguments = [f"{word},server=on,wait=on" if word.startswith("socket,id=c0") else word for word in arguments]
        self.machine = QTestMachine(path, arguments=arguments, seconds=SECONDS)

    @contextmanager
    def set(self) -> Iterator[None]:
        """QEMU runs, and so does the back-end."""
        with contextlib.ExitStack() as opened:
            listener = None
            if not self._listens:
                listener = opened.enter_context(socket.socket(socket.AF_UNIX))
                listener.bind(str(self._path))
                listener.listen(1)
                listener.settimeout(SECONDS)
            thread = threading.Thread(target=self._serve, args=(listener,))
            thread.start()
            opened.callback(thread.join)
            opened.callback(self._over.set)
            opened.enter_context(self.machine)
            yield

    def tell(self, order: Order) -> None:
        """Have the back-end do something soon."""
        self._orders.put(order)

    def _serve(self, listener: socket.socket | None) -> None:
        sock = listener.accept()[0] if listener else self._connect()
        with FrontendBench(sock, Reach(), self.events, deadline=SECONDS) as bench:
            bench.regions = {0: WINDOW}
            while not self._over.is_set() and not bench.over:
                with contextlib.suppress(Exception):  # the end of QEMU is what is wanted
                    bench.soon(lambda: not self._orders.empty(), within=STEP)
                    if not self._orders.empty():
                        self._orders.get()(bench)

    def _connect(self) -> socket.socket:
        end = time.monotonic() + SECONDS
        while True:
            sock = socket.socket(socket.AF_UNIX)
            try:
                sock.connect(str(self._path))
            except OSError:
                sock.close()
                if time.monotonic() > end:
                    raise
                time.sleep(STEP)
            else:
                return sock

    def again(self) -> None:
        """The back-end goes, and another one comes."""
        self.tell(lambda bench: bench.hang_up())
        time.sleep(1)
        threading.Thread(target=self._serve, args=(None,), daemon=True).start()


def _map(bench: FrontendBench, at: int = 0) -> None:
    bench.ask(MAP, Mmap(0, 0, at, PAGE, MAP_RW), fds=[bench.file()])


def before_start(stage: Stage) -> None:
    stage.tell(_map)


def during_stop(stage: Stage) -> None:
    stage.machine.bring_up()

    def arm(bench: FrontendBench) -> None:
        def answer(frame: Frame[OwnedFd]) -> bytes:
            request = Mmap(0, 0, 0, PAGE, MAP_RW)
            bench.channel.request(MAP, request, fds=[bench.file()], flags=VERSION | NEED_REPLY)
            return bench.usual(frame)

        bench.answers[FrontendRequest.GET_VRING_BASE] = answer

    stage.tell(arm)
    time.sleep(0.5)
    stage.machine.stop()


def reset_with_mapping(stage: Stage) -> None:
    stage.machine.bring_up()
    stage.tell(_map)
    time.sleep(0.5)
    stage.machine.system_reset()
    stage.machine.bring_up()


def too_many(stage: Stage) -> None:
    def fill(bench: FrontendBench) -> None:
        file = bench.keep(memory_file(1))
        for page in range(600):
            bench.ask(MAP, Mmap(0, 0, 2 * page * PAGE, PAGE, MAP_RW), fds=[file])

    stage.machine.bring_up()
    stage.tell(fill)


def truncated(stage: Stage) -> None:
    stage.machine.bring_up()
    file = os.memfd_create("shrinks", os.MFD_CLOEXEC)
    os.ftruncate(file, PAGE)
    stage.tell(lambda bench: bench.ask(MAP, Mmap(0, 0, 0, PAGE, MAP_RW), fds=[file]))
    time.sleep(0.5)
    os.ftruncate(file, 0)
    stage.machine.read_shm(0, 0, 8)


def back_end_restarts(stage: Stage) -> None:
    stage.machine.bring_up()
    stage.again()


KILLS: Final = {
    "K1": Kill(
        "SHMEM_MAP before the device is started",
        "The back-end sends SHMEM_MAP once it has its channel, before the driver has set DRIVER_OK.",
        "A back-end that maps early ends the VM. It is at fault, too: while all rings are stopped, it must send no message.",
        before_start,
    ),
    "K2": Kill(
        "SHMEM_MAP in flight while the machine stops",
        "The back-end sends SHMEM_MAP just before it answers GET_VRING_BASE of `stop`.",
        "No back-end that maps at run time can avoid it: `stop`, a reset or a power-off may come at any moment.",
        during_stop,
    ),
    "K3": Kill(
        "A reset with a live mapping, with CONFIGURE_MEM_SLOTS",
        "The back-end has mapped a page; the machine is reset, and its driver brings the device up again.",
        "A guest that reboots while something is mapped ends its VM.",
        reset_with_mapping,
    ),
    "K4": Kill(
        "513 memory regions, with CONFIGURE_MEM_SLOTS",
        "The back-end maps single pages until something ends; it has said that it takes 509 regions.",
        "A window that is mapped in small pieces, as that of virtio-fs is, ends the VM.",
        too_many,
    ),
    "K5": Kill(
        "A mapped file is truncated, and touched",
        "The back-end maps a page of a file, then shortens the file; the driver reads the page.",
        "Whoever can truncate a file that is shared with the guest can end the VM.",
        truncated,
    ),
    "K6": Kill(
        "The back-end is started again (chardev with server=on)",
        "The back-end's connection ends, and another back-end connects.",
        "A back-end can't be restarted: the VM goes with it.",
        back_end_restarts,
        listens=True,
    ),
}


def main(name: str, capture: str = "") -> int:
    """Try it: prints an object with how QEMU ended, what it said, and the conversation."""
    with tempfile.TemporaryDirectory(prefix="vhu") as folder:
        stage = Stage(Path(folder) / "s", listens=KILLS[name].listens)
        with contextlib.suppress(OSError, RuntimeError, ValueError, EOFError), stage.set():
            with contextlib.suppress(OSError, RuntimeError, ValueError, EOFError):
                KILLS[name].act(stage)
            with contextlib.suppress(Exception):
                stage.machine.process.wait(PATIENCE)
            code, said = stage.machine.process.poll(), stage.machine.stderr.strip()
        told = said.splitlines()[-1] if said else ""
        result = {"ended": in_words(code), "said": told, "sent": conversation_of(stage.events)}
    print(json.dumps(result))
    if capture:
        save(Path(capture), stage.events)
    return 0


def in_words(code: int | None) -> str:
    """How QEMU ended, or that it did not."""
    if code is None:
        return "lives: not reproduced"
    return f"was killed by {signal.Signals(-code).name}" if code < 0 else f"ended with exit status {code}: not reproduced"


def save(path: Path, events: list[Event]) -> None:
    """Write the whole conversation as a capture."""
    capture = create_capture(path)
    try:
        for event in events:
            capture.write(event)
    finally:
        capture.close()


if __name__ == "__main__":
    sys.exit(main(*sys.argv[1:]))
