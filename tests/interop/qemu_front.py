"""QEMU as a front-end to check: started for one connection, its device brought up as a driver does it, over qtest.

    vhu check front-end --listen S --run "python -m tests.interop.qemu_front {socket}"

With --idle no driver does anything, with --resets the device is reset and brought up again a little later. It ends as QEMU
does: with its exit status, or of the same signal.
"""

from __future__ import annotations

import os
import resource
import signal
import sys
import time
from contextlib import suppress

from tests.vm.machine import QTestMachine, generic_device

SECONDS = 20.0
RESTS = 0.4


def main(path: str, *options: str) -> int:
    """Run it; QEMU's exit status."""
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(0))
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    machine = QTestMachine(path, device=generic_device(config_size=64), seconds=SECONDS)
    try:
        with machine:
            if "--idle" not in options:
                machine.bring_up()
            if "--resets" in options:
                time.sleep(RESTS)
                machine.bring_up()
            machine.process.wait()
            print(machine.stderr, file=sys.stderr, end="")
    except SystemExit:
        pass
    except Exception as error:
        print(f"{type(error).__name__}: {error}", *getattr(error, "__notes__", []), file=sys.stderr)
    return machine.process.returncode or 0


def end(code: int) -> None:
    """End as the child did."""
    if code < 0 and code not in (-signal.SIGTERM, -signal.SIGKILL):
        signal.signal(-code, signal.SIG_DFL)
        os.kill(os.getpid(), -code)
    sys.exit(max(code, 0))


if __name__ == "__main__":
    with suppress(BrokenPipeError):
        end(main(*sys.argv[1:]))
