"""`vhu vm run`: a Linux guest with our devices, for one command or a shell."""

from __future__ import annotations

import argparse
import os
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from contextlib import ExitStack, nullcontext
from pathlib import Path
from typing import Final

from ..limited_log import printable
from ..transport.listen import listen
from ..vm.errand import DAX_OPTIONS, ERR, MODULES, OUT, STATUS, TTY, Terminal, script
from ..vm.initramfs import initramfs
from ..vm.machine import MIB, TAG, Attachment, Kind, Machine, escaped
from ..vm.ports import Ports
from ..vm.tree import cache_folder, is_fetched, kernel, qemu_command
from .arguments import Parser, between, checked, seconds, size
from .children import GRACE, Child, child
from .outcome import STDERR, CommandError, Exit, complain, interrupt, on_end, put_bytes
from .terminal import raw
from .vm_fetch import ensure_fetched

PROGRAM: Final = "vhu vm run"
BOOT: Final = 120.0
"""Seconds until the guest must be ready."""
LEAST_MEMORY: Final = 128 * MIB
LEAST_WINDOW: Final = 2 * MIB
LAST_WORDS: Final = 4000
EPILOG: Final = """
Without CMD you get a shell on this terminal; Ctrl-] ends the VM, and so does the shell's end. The share is at /mnt, where
the command starts; a disk is /dev/vda, persistent memory /dev/pmem0. CMD is not taken apart by a shell: for that, give
sh -c '...'. Its standard input is empty.

The guest maps files (DAX) where that is safe: with --readonly, or with --dax-write, which writes back what it stores
there. Else it reads and writes them by requests. --stats tells the two apart: SETUPMAPPING, or READ.

  vhu vm run --share . --readonly --stats -- sh -c 'sha256sum *'
  vhu vm run --blk disk.img -- mke2fs /dev/vda

exit status: that of CMD or the shell; else 1 failed, 2 usage, 3 nothing can be fetched here, 130 interrupted
"""


def vm_run(arguments: list[str]) -> int:
    """Run `vhu vm run`; its exit code."""
    cut = arguments.index("--") if "--" in arguments else len(arguments)
    options, command = parser_of_run().parse_args(arguments[:cut]), arguments[cut + 1 :]
    _check(options, command)
    on_end(interrupt)
    if not is_fetched():
        complain(PROGRAM, f"fetching QEMU and a kernel into {cache_folder()}")
        ensure_fetched(cache_folder())
    with ExitStack() as opened:
        return _Run(options, command, opened).exit_code()


def parser_of_run() -> Parser:
    """What it takes, but for CMD."""
    parser = Parser(PROGRAM, "Boot a small Linux guest with our devices, for one command or a shell.", epilog=EPILOG)
    parser.usage = f"{PROGRAM} [options] [-- CMD ...]"
    parser.add_argument("--share", metavar="DIR", help="share a directory with the guest, by virtio-fs")
    parser.add_argument(
        "--dax",
        choices=tuple(DAX_OPTIONS),
        default="copy",
        help="how files get into the window (copy); QEMU 11.1 may crash of direct",
    )
    parser.add_argument(
        "--dax-window", type=checked(_window), metavar="SIZE", help="a power of two, at least 2M (default: that of vhu-fs)"
    )
    access = parser.add_mutually_exclusive_group()
    access.add_argument("--readonly", action="store_true", help="nothing in the share can be changed; all files have DAX")
    access.add_argument("--dax-write", action="store_true", help="files have DAX although they can be written to")
    parser.add_argument("--stats", action="store_true", help="what the guest asked the share for, on standard error")
    parser.add_argument("--pmem", metavar="FILE", help="a file as persistent memory")
    parser.add_argument("--blk", metavar="FILE", help="a file as a disk")
    parser.add_argument("--memory", type=checked(memory), default=512 * MIB, metavar="SIZE", help="default 512M")
    parser.add_argument("--cpus", type=between(1, 255), default=1, metavar="N", help="default 1")
    parser.add_argument("--accel", choices=("tcg", "kvm"), default="tcg", help="tcg (the default) works everywhere")
    parser.add_argument("--timeout", type=checked(seconds), metavar="SECONDS", help="for CMD, once the guest has booted")
    return parser


def _window(text: str) -> int:
    found = size(text)
    if found < LEAST_WINDOW or found & (found - 1):
        raise ValueError(f"{text} is no power of two of at least 2M")
    return found


def memory(text: str) -> int:
    """A guest's memory in bytes; ValueError if it is none."""
    found = size(text)
    if found < LEAST_MEMORY or found % MIB:
        raise ValueError(f"{text} is no multiple of 1M of at least 128M")
    return found


def _check(options: argparse.Namespace, command: Sequence[str]) -> None:
    if not command and not os.isatty(0):
        raise CommandError("standard input is no terminal for a shell", "try: give a command after --", Exit.USAGE)
    if options.share is not None and not os.path.isdir(options.share):
        raise CommandError(f"--share {options.share}: it is no directory", "try: a directory that exists")
    for name in ("pmem", "blk"):
        path = getattr(options, name)
        if path is not None and not os.path.exists(path):
            raise CommandError(f"--{name} {path}: it does not exist", f"try: truncate -s 64M {path}")


_WAITED: Final = {(False, False): "the guest is ready", (True, False): "the end of CMD"}
_THE_END: Final = "the end of QEMU"


class _Run:
    """One boot: back-ends, QEMU, and what the guest says."""

    def __init__(self, options: argparse.Namespace, command: Sequence[str], opened: ExitStack) -> None:
        self._options, self._command, self._opened = options, command, opened
        self._folder = Path(opened.enter_context(tempfile.TemporaryDirectory(prefix="vhu-vm-")))
        self._said = opened.enter_context((self._folder / "qemu").open("a+b"))
        self._status = b""

    def exit_code(self) -> int:
        """That of the command; CommandError if the guest could not run it."""
        back_ends = [self._back_end(kind, words) for kind, words in back_ends_of(self._options)]
        work = self._command or _terminal()
        names = (OUT, ERR, STATUS) if self._command else (TTY, STATUS)
        with Ports(names, keyboard=None if self._command else 0) as ports:
            self._write_initramfs([each.kind for each in back_ends], work)
            words = [*self._machine_words(back_ends), *ports.words()]
            with child(words, fds=ports.fds, said=self._said) as qemu:
                ports.started()
                with nullcontext() if self._command else raw(0):
                    self._attend(ports)
                return self._result(qemu)

    def _back_end(self, kind: Kind, words: Sequence[str]) -> Attachment:
        """A back-end that listens: connections to it wait until it is ready."""
        path = str(self._folder / kind.value)
        with listen(path) as listener:
            fd = listener.fileno()
            self._opened.enter_context(child([sys.executable, "-m", *words, "--fd", str(fd)], fds=[fd]))
        return Attachment(kind, path, dax=self._options.dax != "off")

    def _write_initramfs(self, kinds: Sequence[Kind], work: Sequence[str] | Terminal) -> None:
        modules = [name for kind in kinds for name in MODULES[kind]]
        archive = initramfs(modules, script=script(kinds, work, dax=self._options.dax))
        (self._folder / "initramfs").write_bytes(archive)

    def _machine_words(self, back_ends: Sequence[Attachment]) -> list[str]:
        machine = Machine(self._options.memory, self._options.cpus, self._options.accel)
        return [
            *qemu_command(),
            *machine.words(),
            *("-nodefaults", "-no-user-config", "-display", "none", "-no-reboot", "-run-with", "exit-with-parent=on"),
            *("-kernel", str(kernel()), "-initrd", str(self._folder / "initramfs")),
            *("-append", "console=ttyS0 quiet loglevel=1 panic=-1"),
            *("-chardev", f"file,id=log,path={escaped(str(self._folder / 'log'))}", "-serial", "chardev:log"),
            *(word for each in back_ends for word in each.words()),
        ]

    def _attend(self, ports: Ports) -> None:
        """Pass on what comes, within the time for the boot, then that for the command, then that for the end."""
        limit: float | None = BOOT
        ready = ended = False
        while True:
            try:
                for name, data in ports.pieces(limit):
                    self._take(name, data)
                    if (ready, ended) != (now := (b"ready\n" in self._status, self._answer() is not None)):
                        ready, ended = now
                        break
                else:
                    return
            except TimeoutError:
                raise self._failed(f"not within {limit:g} s: {_WAITED.get((ready, ended), _THE_END)}") from None
            limit = GRACE if ended else self._options.timeout

    def _take(self, name: str, data: bytes) -> None:
        if name == STATUS:
            self._status += data
        elif name == ERR:
            os.write(STDERR, data)
        else:
            put_bytes(data)

    def _answer(self) -> list[str] | None:
        """What the guest said last, once it is complete."""
        *lines, _ = self._status.decode(errors="replace").split("\n")
        return next((line.split(" ", 1) for line in lines if line.startswith(("exit ", "failed "))), None)

    def _result(self, qemu: Child) -> int:
        try:
            code = qemu.wait(GRACE)
        except subprocess.TimeoutExpired:
            code = None
        answer = self._answer()
        if answer is None:
            raise self._failed(f"QEMU ended with {code} before CMD did")
        if answer[0] == "failed":
            raise self._failed(answer[1])
        return int(answer[1])

    def _failed(self, text: str) -> CommandError:
        """An error after what QEMU and the guest said last."""
        log = self._folder / "log"
        words = os.pread(self._said.fileno(), LAST_WORDS, 0) + (log.read_bytes()[-LAST_WORDS:] if log.exists() else b"")
        for line in words.decode(errors="replace").splitlines():
            if line.strip():
                complain("the VM", printable(line.strip()))
        return CommandError(text, "try: vhu doctor")


_DAX_MORE: Final = {"direct": ("--dax-unsafe-peer",)}
"""The QEMU that is fetched may be one of those that crash of it; whoever says direct was told so by --help."""


def back_ends_of(options: argparse.Namespace) -> list[tuple[Kind, list[str]]]:
    """The back-ends that the options ask for, and the modules that are their programs, with their arguments."""
    found: list[tuple[Kind, list[str]]] = []
    if options.share is not None:
        folder = os.path.realpath(options.share)  # vhu-fs shares no symbolic link
        found.append((Kind.SHARE, ["vhostuser.cli.fs", "--shared-dir", folder, "--tag", TAG, *_share_words(options)]))
    if options.pmem is not None:
        found.append((Kind.PMEM, ["vhostuser.cli.pmem", "--image", options.pmem]))
    if options.blk is not None:
        found.append((Kind.BLK, ["vhostuser.cli.blk", "--blk-file", options.blk]))
    return found


def _share_words(options: argparse.Namespace) -> list[str]:
    """How the directory is shared; the daemon says little, for its words are between those of CMD."""
    window = ["--dax-window", str(options.dax_window)] if options.dax_window and options.dax != "off" else []
    given = {"--readonly": options.readonly, "--dax-write": options.dax_write, "--stats": options.stats}
    switches = [name for name, on in given.items() if on]
    quiet = [] if options.stats or os.environ.get("VHU_LOG") else ["--log-level", "warn"]
    return ["--dax", options.dax, *_DAX_MORE.get(options.dax, ()), *window, *switches, *quiet]


def _terminal() -> Terminal:
    columns, rows = os.get_terminal_size(0)
    return Terminal(rows, columns, os.environ.get("TERM", "linux"))
