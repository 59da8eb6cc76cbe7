"""Close a process that has open all it serves: from then on it opens, makes, runs and reaches nothing."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Sequence
from typing import Final

from .allowed import for_device
from .filtering import filter_process
from .landlock import let_remove_in
from .preload import close_imports
from .seccomp import Action
from .system import SandboxError, forbid_privileges

_FOLDER: Final = os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC


def close_up(action: Action, *, removed: Sequence[str] = (), terminal: bool = False) -> list[str]:
    """Filter the system calls of this process; what is not as asked for, for the log. Raises SandboxError.

    `removed` are names that are taken away in the end, which it can do in their directories alone where the kernel has
    Landlock; `terminal` if it gives a terminal back as it was. What Python may need later is to be preloaded, and there must
    be no other thread. With `Action.NONE` all stays as it is.
    """
    if action is Action.NONE:
        return []
    forbid_privileges()
    with contextlib.ExitStack() as opened:
        let_remove_in([_folder(name, opened) for name in removed])
    close_imports()
    return filter_process(for_device(os.getpid(), removes=bool(removed), terminal=terminal), action)


def _folder(name: str, opened: contextlib.ExitStack) -> int:
    """The directory that a name is in, open until the end of the block."""
    try:
        fd = os.open(os.path.dirname(name) or ".", _FOLDER)
    except OSError as error:
        raise SandboxError(f"open the directory of {name}", error.errno or 0, "try: --seccomp none") from None
    opened.callback(os.close, fd)
    return fd
