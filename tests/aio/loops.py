"""Event loops for tests, with a watchdog."""

from __future__ import annotations

import asyncio
import socket
from collections.abc import AsyncIterator, Callable, Coroutine
from contextlib import asynccontextmanager
from typing import Any, TypeVar

from vhostuser.aio import AsyncBackend, AsyncDevice, AsyncFrontend
from vhostuser.testing import DEADLINE

T = TypeVar("T")


def run(work: Coroutine[Any, Any, T]) -> T:
    """Run a coroutine in a loop of its own; TimeoutError if it does not end."""

    async def bounded() -> T:
        async with asyncio.timeout(4 * DEADLINE):
            return await work

    return asyncio.run(bounded())


async def until(holds: Callable[[], object], what: str) -> None:
    """Wait until something holds."""
    end = asyncio.get_running_loop().time() + DEADLINE
    while not holds():
        if asyncio.get_running_loop().time() > end:
            raise AssertionError(f"not within {DEADLINE:g} s: {what}")
        await asyncio.sleep(0.002)


@asynccontextmanager
async def serving(device: AsyncDevice) -> AsyncIterator[tuple[socket.socket, AsyncBackend]]:
    """An AsyncBackend that serves one end of a socketpair; the other end."""
    ours, theirs = socket.socketpair()
    backend = AsyncBackend(device)
    task = asyncio.create_task(backend.serve_fd(theirs.detach()))
    try:
        yield ours, backend
    finally:
        backend.stop()
        await task
        ours.close()


@asynccontextmanager
async def both(device: AsyncDevice, *, packed: bool = False) -> AsyncIterator[AsyncFrontend]:
    """Both sides in one loop; memory is shared."""
    async with serving(device) as (sock, _), await AsyncFrontend.over(sock, packed=packed) as frontend:
        await frontend.share_memory(4 << 20)
        yield frontend
