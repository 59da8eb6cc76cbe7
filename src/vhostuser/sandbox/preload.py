"""Imports: all of them before a sandbox is entered, none afterwards.

Within the sandbox the interpreter's files are gone, and those of the C library, and where they were may be files of the
guest: a late import would run them, and a traceback would quote them.
"""

from __future__ import annotations

import codecs
import contextlib
import ctypes
import importlib
import linecache
import logging
import os
import pkgutil
import sys
import threading
import time
from collections.abc import Sequence
from types import TracebackType
from typing import Final, NoReturn

log = logging.getLogger(__name__)

LATE: Final = (
    *(
        "_strptime",
        "ast",
        "concurrent.futures.thread",
        "contextlib",
        "copyreg",
        "ctypes",
        "dataclasses",
        "datetime",
        "errno",
    ),
    *("fcntl", "heapq", "inspect", "json", "linecache", "locale", "logging.handlers", "mmap", "opcode", "queue", "select"),
    *(
        "selectors",
        "signal",
        "socket",
        "stat",
        "string",
        "struct",
        "textwrap",
        "threading",
        "token",
        "tokenize",
        "traceback",
    ),
    *("tracemalloc", "unicodedata", "warnings", "weakref"),
)
"""What the standard library imports when it is first needed: in an error's text, a warning, a thread's end."""
ENCODINGS: Final = ("utf-8", "ascii", "latin-1", "idna", "unicode_escape", "raw_unicode_escape", "utf-16", "utf-32")
LIBRARIES: Final = ("libgcc_s.so.1",)
"""What the C library loads when it is first needed: to end a thread that is still there when Python ends."""
CONFINED_ADVICE: Final = "a sandbox is entered, where nothing is imported any more"


def preload(*packages: str) -> None:
    """Load what may be needed later: of the standard library, the C library's, and all modules of these packages."""
    for name in LIBRARIES:
        with contextlib.suppress(OSError):  # other C libraries need none
            ctypes.CDLL(name)
    for name in LATE:
        importlib.import_module(name)
    for name in ENCODINGS:
        codecs.lookup(name)
    for name in packages:
        package = importlib.import_module(name)
        for module in pkgutil.walk_packages(package.__path__, f"{name}."):
            importlib.import_module(module.name)
    os.environ["TZ"] = "UTC0"  # else the C library looks for /etc/localtime
    time.tzset()


class NoImports:
    """A finder that refuses: what is asked for was forgotten in `preload`."""

    def find_spec(self, name: str, path: Sequence[str] | None, target: object = None) -> NoReturn:
        """Refuse to look for a module."""
        raise ImportError(f"cannot import {name}: {CONFINED_ADVICE}", name=name)


def close_imports() -> None:
    """From now on import only what is loaded, and quote no source in a traceback, which goes to the log."""
    sys.meta_path[:] = [NoImports()]
    sys.path[:] = []
    linecache.updatecache = _no_lines
    linecache.cache.clear()
    sys.excepthook = _log_uncaught
    sys.unraisablehook = _log_unraisable
    threading.excepthook = _log_of_thread


# The interpreter's own hooks read source by themselves.


def _log_uncaught(kind: type[BaseException], value: BaseException, trace: TracebackType | None) -> None:
    log.error("uncaught", exc_info=(kind, value, trace))


def _log_unraisable(lost: sys.UnraisableHookArgs) -> None:
    text = lost.err_msg or "exception ignored in"
    log.error("%s %r", text, lost.object, exc_info=(lost.exc_type, lost.exc_value or lost.exc_type(), lost.exc_traceback))


def _log_of_thread(ended: threading.ExceptHookArgs) -> None:
    value = ended.exc_value or ended.exc_type()
    name = ended.thread.name if ended.thread else "a thread"
    log.error("%s ended", name, exc_info=(ended.exc_type, value, ended.exc_traceback))


def _no_lines(filename: str, module_globals: object = None) -> list[str]:
    """The lines of a file, of which there are none."""
    return []
