"""Which exceptions of a device's code, or of a front-end's handlers, fail a request, and no more than that."""

from __future__ import annotations

import threading


def device_faults() -> type[BaseException]:
    """What of theirs is caught in this thread.

    Anything, SystemExit too, for it would end the thread and nobody would know. But in the main thread KeyboardInterrupt and
    SystemExit may come from a signal handler that runs just then, and are what ends the program: they pass.
    """
    return Exception if threading.current_thread() is threading.main_thread() else BaseException
