"""Both sides as coroutines, over the same core.

Nothing here blocks the event loop: the core works in threads of its own, one for a front-end, and hands over to the loop.

    class Bell(AsyncDevice):
        '''Rings when the time is over that it is asked to wait.'''

        queue_sizes = (64,)

        async def process(self, queue, chain):
            await asyncio.sleep(float(chain.read()))
            chain.write(b"rang")

    async def main(path):
        backend = AsyncBackend(Bell())
        serving = asyncio.create_task(backend.serve(path))
        async with await AsyncFrontend.connect(path, wait=5) as frontend:
            await frontend.share_memory(1 << 20)
            queue = await frontend.start_queue(0, size=64)
            answers = await asyncio.gather(*(queue.exchange(b"0.01", 4) for _ in range(100)))
        backend.stop()
        await serving
        return answers
"""

from __future__ import annotations

from .backend import AsyncBackend
from .device import AsyncDevice
from .frontend import AsyncFrontend
from .objects import AsyncObjects
from .queue import AsyncQueue
from .shared_memory import AsyncSharedMemory

__all__ = ["AsyncBackend", "AsyncDevice", "AsyncFrontend", "AsyncObjects", "AsyncQueue", "AsyncSharedMemory"]
