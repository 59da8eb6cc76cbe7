"""How a command ends: exit codes, one line of why, and output that may be closed, full or gone."""

from __future__ import annotations

import contextlib
import errno
import os
import signal
import sys
import traceback
import warnings
from collections.abc import Callable, Iterator, Sequence
from enum import IntEnum
from typing import Final, TypeVar

from ..errors import DeadlineExpired, Disconnected, RemoteProtocolError, VhostUserError
from ..limited_log import printable
from ..transport.listen import AddressError

STDOUT: Final = 1
STDERR: Final = 2
INTERRUPT_AGAIN: Final = 0.001
"""Seconds until an interrupt that was lost is raised again."""
ENDING_SIGNALS: Final = (signal.SIGTERM, signal.SIGINT, signal.SIGHUP)
_undoing: Final[list[Callable[[], None]]] = []
T = TypeVar("T")


class Exit(IntEnum):
    """The exit codes of all commands."""

    DONE = 0
    FAILED = 1
    USAGE = 2
    PEER = 3
    """The peer broke the protocol or is not there."""
    INTERRUPTED = 130


class CommandError(Exception):
    """A command can't go on: what failed and why, one thing to try, the exit code, and lines that show the place."""

    def __init__(self, text: str, advice: str = "", code: Exit = Exit.FAILED, shown: Sequence[str] = ()) -> None:
        super().__init__(text)
        self.advice, self.code, self.shown = advice, code, shown


class OutputClosed(Exception):
    """Nobody reads what the command writes: it ends, without a word."""


def run(program: str, command: Callable[[], int]) -> int:
    """Call `command`; its exit code, or that of the error that ended it, of which one line is printed."""
    fill_standard_fds()
    try:
        return _ended(command)
    except OutputClosed:
        return Exit.DONE
    except KeyboardInterrupt:
        return Exit.INTERRUPTED
    except (CommandError, VhostUserError, OSError, MemoryError) as error:
        complain(program, _words(error), getattr(error, "advice", ""), getattr(error, "shown", ()))
        return exit_code(error)
    except Exception as error:
        complain(program, f"internal error: {type(error).__name__}: {error}", "try: VHU_LOG=debug to see where")
        if os.environ.get("VHU_LOG") in ("debug", "trace"):
            _write(STDERR, _encoded(traceback.format_exc()))
        return Exit.FAILED


def _ended(command: Callable[[], int]) -> int:
    """Call a command. What ends it must not kill Python on its way out, which takes signals by their default once more."""
    before = signal.getsignal(signal.SIGTERM)
    try:
        return command()
    finally:
        if signal.getsignal(signal.SIGTERM) is not before:
            for each in ENDING_SIGNALS:
                signal.signal(each, signal.SIG_IGN)


def exit_code(error: BaseException) -> int:
    """The exit code of a command that this error ended."""
    if isinstance(error, CommandError):
        return error.code
    if isinstance(error, RemoteProtocolError | DeadlineExpired | Disconnected):
        return Exit.PEER
    return Exit.FAILED


def reach(where: str, make: Callable[[], T], *, listening: bool = False) -> T:
    """What `make` returns: a connection to the peer at `where`. CommandError, exit code 3, if the peer is not there."""
    try:
        return make()
    except AddressError as error:
        raise CommandError(str(error), error.advice, Exit.FAILED if listening else Exit.PEER) from None
    except (Disconnected, DeadlineExpired) as error:
        advice = "try: check that a back-end serves it, and no other front-end uses it"
        raise CommandError(f"the handshake on {where} failed: {error}", advice, Exit.PEER) from None


def _words(error: BaseException) -> str:
    if isinstance(error, OSError) and error.errno and not isinstance(error, VhostUserError):
        where = f"{os.fsdecode(error.filename)}: " if isinstance(error.filename, str | bytes) else ""
        return f"{where}{error.strerror} ({errno.errorcode.get(error.errno, error.errno)})"
    return str(error) or type(error).__name__


def complain(program: str, text: str, advice: str = "", shown: Sequence[str] = ()) -> None:
    """Say on standard error what failed, in one line that no terminal obeys; below it, indented, what shows the place."""
    line = f"{program}: {text}; {advice}" if advice else f"{program}: {text}"
    with contextlib.suppress(OSError):
        _write(STDERR, _encoded("".join(printable(each) + "\n" for each in [line, *(f"  {more}" for more in shown)])))


def put(text: str) -> None:
    """Write a line, or lines, to standard output, at once. OutputClosed if nobody reads it."""
    put_bytes(_encoded(text + "\n"))


def put_bytes(data: bytes) -> None:
    """Write bytes to standard output, as they are. OutputClosed if nobody reads it."""
    try:
        _write(STDOUT, data)
    except BrokenPipeError:
        raise OutputClosed from None
    except OSError as error:
        name = errno.errorcode.get(error.errno or 0, "")
        raise CommandError(f"cannot write to standard output: {error.strerror} ({name})") from None


def _write(fd: int, data: bytes) -> None:
    """Write past Python's buffers: what can't be written is not tried again at the end, with another exit code."""
    left = memoryview(data)
    while left:
        left = left[os.write(fd, left) :]


def _encoded(text: str) -> bytes:
    return text.encode(errors="backslashreplace")


def fill_standard_fds() -> None:
    """Open /dev/null where fd 0, 1 or 2 is closed: no file that is opened later may get one of these numbers."""
    for fd in range(3):
        try:
            os.fstat(fd)
        except OSError:
            os.open(os.devnull, os.O_RDWR)


def on_end(stop: Callable[[], None]) -> None:
    """Let the first SIGTERM, SIGINT or SIGHUP call `stop`, and the second end the process at once."""

    def leave(number: int, frame: object) -> None:
        for undo in reversed(_undoing):
            undo()
        os._exit(128 + number)

    def end(number: int, frame: object) -> None:
        for each in ENDING_SIGNALS:
            signal.signal(each, leave)
        stop()

    for each in ENDING_SIGNALS:
        signal.signal(each, end)


@contextlib.contextmanager
def undone(undo: Callable[[], None]) -> Iterator[None]:
    """Call `undo`, which may be called twice, at the end of the block; also if a second signal ends the process in it."""
    _undoing.append(undo)
    try:
        yield
    finally:
        undo()
        _undoing.remove(undo)


def interrupt() -> None:
    """Raise KeyboardInterrupt: a `stop` for commands that wait in many places.

    It may come between the opening of a thing and its first owner. The process ends, and takes what is open with it: that
    is no leak, and nobody is warned of it. It may also come in a destructor, which can't pass it on: then it comes again.
    """
    warnings.simplefilter("ignore", ResourceWarning)
    signal.signal(signal.SIGALRM, signal.default_int_handler)
    sys.unraisablehook = _interrupt_again
    raise KeyboardInterrupt


def _interrupt_again(lost: sys.UnraisableHookArgs) -> None:
    """A destructor lost an exception. If it was the interrupt, let another one come once the destructor is done."""
    if issubclass(lost.exc_type, KeyboardInterrupt):
        signal.setitimer(signal.ITIMER_REAL, INTERRUPT_AGAIN)
    else:
        sys.__unraisablehook__(lost)


def colours() -> bool:
    """Standard output is a terminal that wants colours (https://no-color.org)."""
    return not os.environ.get("NO_COLOR") and os.environ.get("TERM") != "dumb" and os.isatty(STDOUT)


def program_arguments(argv: list[str] | None) -> list[str]:
    """`argv`, or what this process was started with."""
    return sys.argv[1:] if argv is None else argv
