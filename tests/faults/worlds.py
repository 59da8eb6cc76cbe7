"""Two sides in this process, one of them under test: a back-end in its threads, or a front-end in the main thread."""

from __future__ import annotations

import contextlib
import tempfile
from abc import ABC, abstractmethod
from collections.abc import Hashable, Sequence
from types import MappingProxyType, TracebackType
from typing import Final, Protocol, Self

from vhostuser import DescriptorChain, Device, Frontend, RequestFailed, VhostUserError
from vhostuser import backend as backend_module
from vhostuser.device import Device as AnyDevice
from vhostuser.protocol.framing import Frame
from vhostuser.protocol.layout import Payload
from vhostuser.protocol.numbers import FrontendRequest, mask
from vhostuser.protocol.numbers import ProtocolFeature as F
from vhostuser.protocol.payloads import U64
from vhostuser.serving import Serving
from vhostuser.testing import RawFrontend, Served, memory_file
from vhostuser.testing.raw_frontend import PROTOCOL_FEATURES
from vhostuser.transport.fds import HasFileno, OwnedFd, close_all

from .holdings import window_problems
from .shim import Whose

PAGE: Final = 4096
REGION: Final = 1 << 20
TIMEOUT: Final = 5.0
WANTED: Final = PROTOCOL_FEATURES | mask((F.INFLIGHT_SHMFD, F.LOG_SHMFD, F.CONFIGURE_MEM_SLOTS, F.GET_VRING_BASE_INFLIGHT))


class Refused(Exception):
    """The peer said no."""


class Ended(Exception):
    """The peer ended the connection."""


EXPECTED: Final = (VhostUserError, OSError, Refused, Ended)
"""How an operation may fail."""
_serving: list[Serving] = []


class RecordedServing(Serving):
    """Can be looked into."""

    def __init__(self, *args: object) -> None:
        super().__init__(*args)  # type: ignore[arg-type]  # as they are
        _serving[:] = [self]


def record_servings() -> None:
    """Have the newest connection of a back-end looked into from now on."""
    vars(backend_module)["Serving"] = RecordedServing


class Mapper(Device):
    """Maps a page, takes it away, or echoes, and says how that went."""

    queue_sizes = (16, 16)
    shared_memory = MappingProxyType({0: REGION})

    def __init__(self) -> None:
        self.file = memory_file(4)

    def process(self, queue: int, chain: DescriptorChain) -> None:
        asked, answer = chain.read(), b"yes"
        try:
            if asked == b"map":
                self.shm[0].map(self.file, shm_offset=2 * PAGE, len=PAGE, fd_offset=PAGE)
            elif asked == b"unmap":
                self.shm[0].unmap(shm_offset=2 * PAGE, len=PAGE)
        except (VhostUserError, OSError) as error:
            answer = type(error).__name__.encode()
        chain.write(answer)

    def close(self) -> None:
        self.file.close()


class Plain(Device):
    """Echoes, and has no regions, so it offers memory slots."""

    queue_sizes = (16, 16)

    def process(self, queue: int, chain: DescriptorChain) -> None:
        chain.write(chain.read())

    def close(self) -> None:
        pass


class Closable(Protocol):
    """A device with something to close."""

    def close(self) -> None: ...


def back_end_tables(device: AnyDevice) -> Hashable:
    """What the back-end knows of its front-end."""
    if not _serving:
        return None
    serving = _serving[0]
    requests, rings = serving._ring_requests, serving._rings
    return (
        serving._session.state,
        tuple(region.identity for region in requests.guest.memory.regions),
        requests.guest._log is not None,
        requests._inflight is not None,
        tuple((ring.queue is not None, ring.active, ring.broken, tuple(sorted(ring._files))) for ring in rings.vrings),
        regions_of(device),
    )


def regions_of(device: AnyDevice) -> Hashable:
    """What a device has mapped, and how many that are by its quota."""
    return tuple((region.mappings, region._quota.used) for region in device.shm.values())


class World(ABC):
    """Both sides. `prepare` and `act` of an operation use it."""

    whose: Whose

    def __init__(self, device: AnyDevice) -> None:
        self.device, self.stack = device, contextlib.ExitStack()
        self.served: Served | None = None
        _serving.clear()

    def file(self, pages: int = 4) -> OwnedFd:
        """A sealed file, closed with the world."""
        return self.stack.enter_context(memory_file(pages))

    def folder(self) -> str:
        return self.stack.enter_context(tempfile.TemporaryDirectory(prefix="vhu-"))

    @abstractmethod
    def alive(self) -> bool:
        """Whether the connection is there, with all its channels."""

    @abstractmethod
    def tables(self) -> Hashable:
        """What may not change when an operation fails."""

    def problems(self) -> list[str]:
        """What is wrong at any time."""
        return []

    def close(self) -> None:
        if self.served:
            self.served.stop()
        self.stack.close()
        if isinstance(self.device, Mapper | Plain):
            self.device.close()
        _serving.clear()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, value: BaseException | None, trace: TracebackType | None) -> None:
        self.close()


class BackWorld(World):
    """A back-end under test; nothing happens to its front-end, a raw one."""

    whose = Whose.OTHERS

    def __init__(self, device: AnyDevice | None = None) -> None:
        super().__init__(device or Mapper())
        self.raw: RawFrontend | None = None

    def connect(self) -> None:
        """Have a back-end, and be its front-end."""
        if self.served:
            self.served.stop()
        if self.raw:
            self.raw.close()
        self.served = Served(self.device, reply_timeout=TIMEOUT, partial_timeout=TIMEOUT)
        self.raw = self.stack.enter_context(RawFrontend(self.served.connected()))

    def negotiate(self) -> None:
        wire = self.wire
        offered = U64.unpack(self.answer(FrontendRequest.GET_FEATURES)).value
        protocol = U64.unpack(self.answer(FrontendRequest.GET_PROTOCOL_FEATURES)).value
        wire.request(FrontendRequest.SET_PROTOCOL_FEATURES, U64(protocol & WANTED))
        self.ask(FrontendRequest.SET_OWNER)
        self.ask(FrontendRequest.SET_FEATURES, U64(offered & ~(1 << 34)))

    @property
    def wire(self) -> RawFrontend:
        if self.raw is None:
            raise Ended("there is no connection")
        return self.raw

    def answer(self, request: FrontendRequest, body: Payload | None = None, fds: Sequence[HasFileno] = ()) -> bytes:
        """Send a request that has a reply of its own: its payload. What fds come with it are closed."""
        self.wire.request(request, body, fds=fds)
        return self._received().payload

    def ask(self, request: FrontendRequest, body: Payload | None = None, fds: Sequence[HasFileno] = ()) -> None:
        """Send a request, and have it acknowledged."""
        self.wire.request(request, body, fds=fds, flags=9)
        if U64.unpack(self._received().payload).value:
            raise Refused(request.name)

    def _received(self) -> Frame[OwnedFd]:
        frame = self.wire.receive_or_end()
        if frame is None:
            raise Ended
        close_all(frame.fds)
        return frame

    def start(self) -> None:
        """A connection with memory and a queue at work."""
        self.connect()
        self.negotiate()
        self.wire.share_memory()
        self.wire.set_up_queue()

    def alive(self) -> bool:
        try:
            self.answer(FrontendRequest.GET_FEATURES)
        except Ended:
            return False
        return True

    def tables(self) -> Hashable:
        return back_end_tables(self.device)


class FrontWorld(World):
    """Our two sides. `whose` says which of them is under test."""

    def __init__(self, device: AnyDevice | None = None, whose: Whose = Whose.MINE) -> None:
        super().__init__(device or Mapper())
        self.whose = whose
        self.front: Frontend | None = None
        self.path = ""

    @property
    def frontend(self) -> Frontend:
        if self.front is None:
            raise Ended("there is no front-end")
        return self.front

    def serve(self) -> None:
        """Have a back-end."""
        self.served = Served(self.device, reply_timeout=TIMEOUT, partial_timeout=TIMEOUT)

    def listen(self) -> None:
        """Have one that listens at a path."""
        self.path = self.path or f"{self.folder()}/s"
        self.served = Served(self.device, reply_timeout=TIMEOUT, partial_timeout=TIMEOUT)
        self.served.at(self.path)

    def connect(self, *, inflight: bool = False) -> None:
        """Have a front-end."""
        features = mask((9, 13, 14))
        options = {"reply_timeout": TIMEOUT, "partial_timeout": TIMEOUT, "inflight": inflight, "features": features}
        if self.path:
            self.front = Frontend.connect(self.path, **options)  # type: ignore[arg-type]  # each of its kind
        elif self.served:
            self.front = Frontend(self.served.connected(), **options)  # type: ignore[arg-type]  # each of its kind

    def start(self) -> None:
        """Memory and a queue at work."""
        self.serve()
        self.connect()
        self.frontend.share_memory(1 << 20)
        self.exchange(b"hello")

    def exchange(self, asked: bytes) -> None:
        """Ask the device for something."""
        queues = self.frontend._queues
        queue = queues[0] if 0 in queues._started else self.frontend.start_queue(0, size=16)
        answer = queue.exchange(asked, 64, timeout=2 * TIMEOUT)
        if answer not in (b"yes", asked):
            raise RequestFailed(asked.decode(), 1, answer.decode())

    def alive(self) -> bool:
        port = _serving[0]._port if _serving else None
        lost = self.frontend._driving.lost or (self.frontend.shm and not self.frontend._answering.is_open)
        return not lost and port is not None and (not self.frontend.shm or port._channel is not None)

    def tables(self) -> Hashable:
        front = self.front
        if front is None:
            return None
        windows, sharing = front._windows._windows.values(), front._sharing
        return (
            tuple((tuple(window.table), window.quota.used) for window in windows),
            regions_of(self.device),
            sharing.arena and sharing.arena.free,
            tuple(block.guest_addr for block in sharing._added.blocks),
            frozenset(front._queues._started),
            front._tracking.active,
        )

    def problems(self) -> list[str]:
        if self.front is None or not self.front.shm or not self.front.shm[0].address:
            return []
        found = window_problems(self.front.shm[0])
        ours, theirs = self.front.shm[0].mappings, self.device.shm[0].mappings
        if self.alive() and ours != theirs:
            found.append(f"the front-end's table is {ours}, the back-end's {theirs}")
        return found

    def close(self) -> None:
        if self.front:
            self.front.close()
        super().close()
