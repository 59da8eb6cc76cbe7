"""QEMU with a Linux guest as a front-end to check: its driver, of a random number generator, brings the device up.

    python -m tests.interop.qemu_guest --save STATE
    vhu check front-end --listen S --run "python -m tests.interop.qemu_guest {socket} STATE"

The guest boots once, which takes seconds, and is saved. From there each connection gets a guest in a moment; the device is
plugged into that, as one that is there from the start would be silent for a boot. A little later the guest lets go of the
device, which resets it, and takes it again; once. The program ends of the signal that QEMU died of.
"""

from __future__ import annotations

import resource
import signal
import sys
import time
from contextlib import suppress
from typing import Final

from tests.vm.machine import generic_device
from vhostuser.virtio.numbers import DeviceId
from vhostuser.vm.guest import Guest, GuestFailed
from vhostuser.vm.qmp import Qmp, QmpError

from .qemu_front import end

SECONDS: Final = 20.0
BOOT: Final = 300.0
STEP: Final = 0.02
LETS_GO: Final = 1.5
"""Seconds that the driver has the device before it lets it go."""
BRIDGE: Final = ("-device", "pcie-pci-bridge,id=p0")
"""Where the device is plugged in: behind a port of PCI Express two regions of shared memory abort QEMU 11.1."""
DRIVER: Final = "/sys/bus/virtio/drivers/virtio_rng"
AGAIN: Final = f"sleep {LETS_GO}; echo virtio1 >{DRIVER}/unbind; echo virtio1 >{DRIVER}/bind"


class SavedGuest(Guest):
    """A guest that goes on where it was saved, its shell waiting."""

    def __init__(self, state: str) -> None:
        super().__init__([*BRIDGE, "-incoming", f"file:{state}"], modules=["virtio_rng"], memory=128, seconds=SECONDS)

    def wait_ready(self) -> None:
        """Wait until it is there whole, and runs."""
        _await(self, "query-status", "running")


def main(path: str, state: str) -> int:
    """Run it; QEMU's exit status."""
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(0))
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    guest = SavedGuest(state)
    try:
        with guest:
            warm_up(guest)
            plug(guest.qmp, path)
            guest.run(AGAIN)
            guest.process.wait()
    except SystemExit:
        return 0
    except (GuestFailed, QmpError, OSError) as error:
        print(f"{type(error).__name__}: {error}", *getattr(error, "__notes__", []), file=sys.stderr)
    return guest.process.returncode


def warm_up(guest: Guest) -> None:
    """Plug another device in first: TCG has translated then what the guest does for ours, which is quick thereby."""
    guest.qmp.execute("device_add", driver="virtio-rng-pci", id="warm", bus="p0", addr="2")
    guest.run(f"until [ -e {DRIVER}/virtio0 ]; do sleep 0.02; done")


def plug(monitor: Qmp, path: str) -> None:
    """Connect to the back-end and plug the device in: the guest's driver takes it."""
    address = {"type": "unix", "data": {"path": path}}
    monitor.execute("chardev-add", id="c0", backend={"type": "socket", "data": {"addr": address, "server": False}})
    driver, *words = generic_device(virtio_id=DeviceId.RNG).split(",")
    sizes = {name: int(value) for name, value in (word.split("=") for word in words)}
    monitor.execute("device_add", driver=driver, id="d0", bus="p0", addr="1", chardev="c0", **sizes)


def save(state: str) -> int:
    """Boot a guest, and save it."""
    with Guest(BRIDGE, modules=["virtio_rng"], memory=128, seconds=BOOT) as guest:
        guest.qmp.execute("migrate", uri=f"file:{state}")
        _await(guest, "query-migrate", "completed")
    return 0


def _await(guest: Guest, command: str, wanted: str) -> None:
    """Ask QEMU until what is asked for is so."""
    deadline = time.monotonic() + guest.seconds
    while (found := guest.qmp.execute(command)) and isinstance(found, dict) and found["status"] != wanted:
        if found["status"] == "failed" or time.monotonic() > deadline:
            raise GuestFailed(f"{command} still says {found['status']}, not {wanted}")
        time.sleep(STEP)


if __name__ == "__main__":
    first, second = sys.argv[1:]
    with suppress(BrokenPipeError):
        end(save(second) if first == "--save" else main(first, second))
