"""Messages for which the kernel has no memory, for longer than anybody tries: what becomes of them, and of what comes next.

Run as a process with the shim preloaded; says in JSON what each scenario gave.
"""

from __future__ import annotations

import errno
import json
import logging
import os

from vhostuser import DescriptorChain, VhostUserError, accelerated
from vhostuser.protocol.numbers import BackendRequest, FrontendRequest
from vhostuser.shared_memory import MapRequest

from .shim import Fault, Shim, Whose
from .sweep import FOR_GOOD
from .worlds import PAGE, FrontWorld, Mapper, Refused, record_servings

ROWS = 3


class ManyMapper(Mapper):
    """Maps some pages at once, too, and tells of its configuration."""

    def process(self, queue: int, chain: DescriptorChain) -> None:
        asked, answer, region = chain.read(), b"yes", self.shm[0]
        places = [(at * PAGE, PAGE) for at in range(ROWS)]
        try:
            if asked == b"map many":
                region.map_many([MapRequest(self.file, offset, len) for offset, len in places])
            elif asked == b"unmap many":
                region.unmap_many(places)
            elif asked == b"map":
                region.map(self.file, shm_offset=0, len=PAGE)
            elif asked == b"tell":
                with region._port.lock:
                    region._port.send_all([(BackendRequest.CONFIG_CHANGE_MSG, None, ())])
        except (VhostUserError, OSError) as error:
            answer = f"{type(error).__name__}: {error}".encode()
        chain.write(answer)


def call_of(asked: bytes) -> str:
    """The system call that sends what a device is asked for."""
    if not accelerated or asked == b"tell":
        return "sendmsg"
    return "send" if asked == b"unmap many" else "sendmmsg"


def a_device(asked: bytes, *before: bytes) -> list[str]:
    """What a device says that finds no memory, whether all is as before, and what it says afterwards."""
    with FrontWorld(ManyMapper(), Whose.OTHERS) as world:
        world.start()
        for each in before:
            said(world, each)
        tables = world.tables()
        with Shim().failing(Fault(call_of(asked), errno.ENOMEM, 1, FOR_GOOD), world.whose):
            first = said(world, asked)
        same = world.tables() == tables and world.alive() and not world.problems()
        return [first, str(same), said(world, asked)]


def said(world: FrontWorld, asked: bytes) -> str:
    return world.frontend._queues[0].exchange(asked, 200, timeout=30).decode()


def a_front_end() -> list[str]:
    """The same of a front-end."""
    with FrontWorld(ManyMapper(), Whose.MINE) as world:
        world.start()
        front, before = world.frontend, world.frontend._session.state
        with Shim().failing(Fault("sendmsg", errno.ENOMEM, 1, FOR_GOOD), world.whose):
            try:
                first = str(front.request(FrontendRequest.RESET_DEVICE))
            except OSError as error:
                first = f"{type(error).__name__}: {error}"
        same = front._session.state == before and world.alive()
        return [first, str(same), str(front.request(FrontendRequest.RESET_DEVICE))]


def a_moment() -> list[str]:
    """A single map is sent in the plain way first."""
    with FrontWorld(ManyMapper(), Whose.OTHERS) as world:
        world.start()
        with Shim().failing(Fault("sendmsg", errno.ENOBUFS, 1, 3), world.whose) as hits:
            first = said(world, b"map")
        if not hits[0]:
            raise Refused("no call was made to fail")
        return [first, str(world.alive())]


def main() -> None:
    logging.disable(logging.CRITICAL)
    record_servings()
    found = {
        "map many": a_device(b"map many"),
        "unmap many": a_device(b"unmap many", b"map many"),
        "tell": a_device(b"tell"),
        "front-end": a_front_end(),
        "a moment": a_moment(),
    }
    print(json.dumps(found), flush=True)
    os._exit(0)


if __name__ == "__main__":
    main()
