"""QEMU with a Linux guest as a front-end to check: its driver, of a random number generator, brings the device up.

    vhu check front-end --timeout 30 --listen S --run "python -m tests.interop.qemu_guest {socket}"

A little later the guest lets go of the device, which resets it, and takes it again; once. It ends of the signal that QEMU
died of.
"""

from __future__ import annotations

import resource
import signal
import sys
from contextlib import suppress

from tests.vm.machine import generic_device
from vhostuser.virtio.numbers import DeviceId
from vhostuser.vm.guest import Guest, GuestFailed

from .qemu_front import end

SECONDS = 60.0
LETS_GO = 2.5
"""Seconds that the driver has the device before it lets it go."""
DRIVER = "/sys/bus/virtio/drivers/virtio_rng"
AGAIN = f"sleep {LETS_GO}; echo virtio0 >{DRIVER}/unbind; echo virtio0 >{DRIVER}/bind"


def main(path: str) -> int:
    """Run it; QEMU's exit status."""
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(0))
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    device = f"{generic_device(virtio_id=DeviceId.RNG)},chardev=c0"
    words = ["-chardev", f"socket,id=c0,path={path}", "-device", device]
    guest = Guest(words, modules=["virtio_rng"], memory=128, seconds=SECONDS)
    try:
        with guest:
            guest.run(AGAIN)
            guest.process.wait()
    except SystemExit:
        return 0
    except (GuestFailed, OSError) as error:
        print(f"{type(error).__name__}: {error}", *getattr(error, "__notes__", []), file=sys.stderr)
    return guest.process.returncode


if __name__ == "__main__":
    with suppress(BrokenPipeError):
        end(main(*sys.argv[1:]))
