"""What is done while a system call fails: each operation has a world, which it prepares, and one act."""

from __future__ import annotations

import os
import socket
from collections.abc import Callable
from dataclasses import dataclass
from typing import Final, TypeVar

from vhostuser.protocol.numbers import FrontendRequest as Q
from vhostuser.protocol.payloads import (
    U64,
    Inflight,
    Log,
    MemoryRegion,
    MemoryTable,
    SingleRegion,
    VringAddr,
    VringState,
)
from vhostuser.testing import RawFrontend, Served, memory_file
from vhostuser.transport.fds import OwnedFd
from vhostuser.transport.listen import connect

from .shim import Whose
from .worlds import REGION, TIMEOUT, BackWorld, FrontWorld, Plain, Refused, World

Any = TypeVar("Any", bound=World)


@dataclass(frozen=True)
class Operation:
    """`prepare` comes before any fault, `act` is what meets one, and is tried again without."""

    group: str
    """Those of a group are swept by one process."""
    world: Callable[[], World]
    prepare: Callable[[World], None]
    act: Callable[[World], None]
    atomic: bool = True
    """All tables are as before when it fails; else it may have come half the way, and the next try goes all of it."""
    never_fails: bool = False
    ends: bool = False
    """The connection is over when it is done."""
    lasting: bool = False
    """A failure is for good, and said again."""
    calls: tuple[str, ...] = ()
    """What fails where there is little time; all, if nothing is said."""


OPERATIONS: Final[dict[str, Operation]] = {}
LOCAL: Final = (
    *("getsockname", "setsockopt", "eventfd", "memfd_create", "ftruncate", "mmap", "mremap", "fstat", "fstatfs", "fcntl"),
    *("dup", "ioctl", "close", "pthread_create", "poll"),
)
"""All but those of channels, which do the same for each request."""


def operation(
    group: str, world: Callable[[], Any], prepare: Callable[[Any], None], *, calls: tuple[str, ...] = (), **words: bool
) -> Callable[[Callable[[Any], None]], Callable[[Any], None]]:
    """Enter an act under its name."""

    def enter(act: Callable[[Any], None]) -> Callable[[Any], None]:
        OPERATIONS[act.__name__] = Operation(group, world, prepare, act, calls=calls, **words)  # type: ignore[arg-type]  # of one world
        return act

    return enter


# A back-end, and what its front-end asks for


def eventfd() -> OwnedFd:
    return OwnedFd(os.eventfd(0, os.EFD_CLOEXEC | os.EFD_NONBLOCK))


def nothing(world: World) -> None:
    """Has nothing to prepare."""


def negotiated(world: BackWorld) -> None:
    world.connect()
    world.negotiate()


def with_memory(world: BackWorld) -> None:
    negotiated(world)
    world.wire.share_memory()


def laid_out(world: BackWorld) -> None:
    """A ring that lacks only its kick."""
    with_memory(world)
    world.ask(Q.SET_VRING_NUM, VringState(0, 16))
    world.ask(Q.SET_VRING_BASE, VringState(0, 0))
    world.ask(Q.SET_VRING_ADDR, VringAddr(0, 0, 0, 0x2000, 0x100, 0))


def kicked(world: BackWorld) -> None:
    laid_out(world)
    world.ask(Q.SET_VRING_KICK, U64(0), [world.wire.eventfd()])


def at_work(world: BackWorld) -> None:
    world.start()


def plain() -> BackWorld:
    return BackWorld(Plain())


def with_block(world: BackWorld) -> None:
    at_work(world)
    world.ask(Q.ADD_MEM_REG, SingleRegion(REGION * 4, 4096, REGION * 4, 0), [world.file()])


@operation("back-end", BackWorld, nothing, atomic=False)
def serve(world: BackWorld) -> None:
    """A front-end comes and negotiates."""
    world.connect()
    world.negotiate()


def listening(world: BackWorld) -> None:
    world.path = f"{world.folder()}/s"  # type: ignore[attr-defined]  # for the act
    world.served = Served(world.device, reply_timeout=TIMEOUT)
    world.served.at(world.path)  # type: ignore[attr-defined]


@operation("back-end", BackWorld, listening, atomic=False)
def accept(world: BackWorld) -> None:
    """A front-end comes to a path."""
    if world.raw:
        world.raw.close()
    world.raw = world.stack.enter_context(RawFrontend(connect(world.path)))  # type: ignore[attr-defined]
    world.negotiate()


@operation("back-end", BackWorld, negotiated)
def set_mem_table(world: BackWorld) -> None:
    regions = [MemoryRegion(REGION * at, 4096, REGION * at, 0) for at in range(3)]
    with memory_file(1) as one, memory_file(1) as other, memory_file(1) as third:
        world.ask(Q.SET_MEM_TABLE, MemoryTable(regions), [one, other, third])


@operation("back-end", plain, at_work, calls=LOCAL)
def add_mem_reg(world: BackWorld) -> None:
    with memory_file(1) as file:
        world.ask(Q.ADD_MEM_REG, SingleRegion(REGION * 8, 4096, REGION * 8, 0), [file])


@operation("back-end", plain, with_block)
def rem_mem_reg(world: BackWorld) -> None:
    world.ask(Q.REM_MEM_REG, SingleRegion(REGION * 4, 4096, REGION * 4, 0))


@operation("back-end", BackWorld, laid_out, calls=LOCAL)
def set_vring_kick(world: BackWorld) -> None:
    with eventfd() as fd:
        world.ask(Q.SET_VRING_KICK, U64(0), [fd])


@operation("back-end", BackWorld, kicked, calls=LOCAL)
def set_vring_enable(world: BackWorld) -> None:
    world.ask(Q.SET_VRING_ENABLE, VringState(0, 1))


@operation("back-end", BackWorld, at_work)
def set_vring_call(world: BackWorld) -> None:
    with eventfd() as fd:
        world.ask(Q.SET_VRING_CALL, U64(0), [fd])


@operation("back-end", BackWorld, at_work, calls=LOCAL)
def set_vring_err(world: BackWorld) -> None:
    with eventfd() as fd:
        world.ask(Q.SET_VRING_ERR, U64(0), [fd])


@operation("back-end", BackWorld, at_work)
def get_vring_base(world: BackWorld) -> None:
    world.answer(Q.GET_VRING_BASE, VringState(0, 0))


@operation("back-end", BackWorld, negotiated, calls=LOCAL)
def set_backend_req_fd(world: BackWorld) -> None:
    ours, theirs = socket.socketpair()
    with ours, theirs:
        world.ask(Q.SET_BACKEND_REQ_FD, None, [theirs])


@operation("back-end", BackWorld, negotiated)
def get_shmem_config(world: BackWorld) -> None:
    world.answer(Q.GET_SHMEM_CONFIG)


@operation("back-end", BackWorld, negotiated)
def get_inflight_fd(world: BackWorld) -> None:
    if not Inflight.unpack(world.answer(Q.GET_INFLIGHT_FD, Inflight(0, 0, 2, 16))).mmap_size:
        raise Refused("GET_INFLIGHT_FD")


@operation("back-end", BackWorld, negotiated, calls=LOCAL)
def set_inflight_fd(world: BackWorld) -> None:
    with memory_file(4) as file:
        world.ask(Q.SET_INFLIGHT_FD, Inflight(8192, 0, 2, 16), [file])


@operation("back-end", BackWorld, at_work, calls=LOCAL)
def set_log_base(world: BackWorld) -> None:
    with memory_file(1) as file:
        world.answer(Q.SET_LOG_BASE, Log(4096, 0), [file])


@operation("back-end", BackWorld, at_work)
def reset_device(world: BackWorld) -> None:
    world.ask(Q.RESET_DEVICE)


@operation("back-end", BackWorld, at_work, atomic=False, never_fails=True, ends=True)
def end(world: BackWorld) -> None:
    """The front-end goes."""
    world.wire.close()
    if world.served:
        world.served.join()


# A front-end, and what it does


def served(world: FrontWorld) -> None:
    world.listen()


def connected(world: FrontWorld) -> None:
    world.serve()
    world.connect()


def tracked(world: FrontWorld) -> None:
    world.serve()
    world.connect(inflight=True)


def started(world: FrontWorld) -> None:
    world.start()


def mapped(world: FrontWorld) -> None:
    world.start()
    world.exchange(b"map")


def plain_pair() -> FrontWorld:
    return FrontWorld(Plain())


@operation("front-end", FrontWorld, served)
def connect_and_negotiate(world: FrontWorld) -> None:
    world.connect()


@operation("front-end", FrontWorld, connected)
def share_memory(world: FrontWorld) -> None:
    world.frontend.share_memory(1 << 20)


@operation("front-end", plain_pair, started, calls=LOCAL)
def add_memory(world: FrontWorld) -> None:
    world.frontend.add_memory(1 << 16)


@operation("front-end", plain_pair, tracked, calls=LOCAL)
def track_inflight(world: FrontWorld) -> None:
    world.frontend.track_inflight(16)


@operation("front-end", FrontWorld, started)
def start_queue(world: FrontWorld) -> None:
    world.frontend.start_queue(1, size=16)


@operation("front-end", FrontWorld, started, atomic=False)
def stop_queue(world: FrontWorld) -> None:
    world.frontend.stop_queue(0)


@operation("front-end", FrontWorld, mapped, atomic=False)
def reset(world: FrontWorld) -> None:
    world.frontend.reset()
    if world.frontend.shm[0].mappings:
        raise Refused("mappings are left")


@operation("front-end", FrontWorld, mapped, never_fails=True, atomic=False, ends=True, calls=LOCAL)
def close(world: FrontWorld) -> None:
    world.frontend.close()


def lost(world: FrontWorld) -> None:
    """A back-end that went, with something mapped, and another one in its place."""
    mapped(world)
    if world.served:
        world.served.stop()
    world.listen()


@operation("front-end", FrontWorld, lost, atomic=False, calls=(*LOCAL, "socket", "socketpair", "connect", "sendmsg"))
def reconnect(world: FrontWorld) -> None:
    world.frontend.reconnect(world.path, wait=TIMEOUT)


@operation("front-end", FrontWorld, started)
def shmem_map_in_front(world: FrontWorld) -> None:
    world.exchange(b"map")
    world.frontend.shm[0].read(2 * 4096, 1)


@operation("front-end", FrontWorld, mapped)
def shmem_unmap_in_front(world: FrontWorld) -> None:
    world.exchange(b"unmap")


def back_end_of_pair() -> FrontWorld:
    return FrontWorld(whose=Whose.OTHERS)


@operation("pair", back_end_of_pair, started, atomic=False)
def start_queue_in_back(world: FrontWorld) -> None:
    world.frontend.start_queue(1, size=16)


@operation("pair", back_end_of_pair, started)
def shmem_map_in_back(world: FrontWorld) -> None:
    world.exchange(b"map")


@operation("pair", back_end_of_pair, mapped)
def shmem_unmap_in_back(world: FrontWorld) -> None:
    world.exchange(b"unmap")
