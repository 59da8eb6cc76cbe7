"""The driver of `vhu-shm`'s requests against the device itself, over both ring formats."""

from __future__ import annotations

import random
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from vhostuser import DescriptorChain, LocalProtocolError, MemoryFault, RemoteProtocolError, RequestFailed
from vhostuser.devices.shm import MappedFiles, Offer, Placement
from vhostuser.drivers.shm import AT_ONCE, ShmDriver
from vhostuser.testing import Joined, joined
from vhostuser.virtio.mapper import ENTRY, REQUEST, MapperOp, MapperRequest, MapperStatus

from .devices import Answering

PAGE = 4096
MIB = 1 << 20
REGIONS = {0: 16 * MIB, 7: MIB}
CONTENT = random.Random(1).randbytes(64 * PAGE)


@pytest.fixture(params=[False, True], ids=["split", "packed"])
def packed(request: pytest.FixtureRequest) -> bool:
    return bool(request.param)


@contextmanager
def serving(folder: Path, *placements: Placement, packed: bool = False) -> Iterator[tuple[Joined, ShmDriver]]:
    """The device with file 0, which may be written, and file 1, which may not; and a driver of it."""
    for name in ("writable", "read-only"):
        (folder / name).write_bytes(CONTENT)
    offers = [Offer(str(folder / "writable"), writable=True), Offer(str(folder / "read-only"))]
    with MappedFiles(REGIONS, placements, offers, num_queues=2) as device, joined(device, packed=packed) as both:
        both.frontend.share_memory(MIB)
        yield both, ShmDriver(both.frontend)


def test_a_part_of_a_file_is_mapped_seen_and_unmapped(tmp_path: Path, packed: bool) -> None:
    with serving(tmp_path, packed=packed) as (both, driver):
        region = both.frontend.shm[7]
        driver.map(1, shm_offset=PAGE, len=3 * PAGE, fd_offset=5 * PAGE, shmid=7)
        assert region.read(PAGE, 3 * PAGE) == CONTENT[5 * PAGE : 8 * PAGE]
        assert [driver.mappings(7), region.mappings] == [((PAGE, 3 * PAGE, 5 * PAGE, False),)] * 2
        assert driver.mappings() == both.frontend.shm[0].mappings == ()
        driver.unmap(shm_offset=PAGE, len=3 * PAGE, shmid=7)
        assert driver.mappings(7) == region.mappings == ()
        with pytest.raises(MemoryFault):
            region.read(PAGE, 1)


def test_what_is_mapped_writable_is_written_to_the_file(tmp_path: Path, packed: bool) -> None:
    with serving(tmp_path, packed=packed) as (both, driver):
        driver.map(0, shm_offset=0, len=PAGE, fd_offset=PAGE, writable=True)
        driver.map(0, shm_offset=PAGE, len=PAGE)
        both.frontend.shm[0].write(0, b"from the driver")
        assert (tmp_path / "writable").read_bytes()[PAGE:].startswith(b"from the driver")
        with pytest.raises(MemoryFault, match="read-only"):
            both.frontend.shm[0].write(PAGE, b"not here")


def test_files_of_the_start_and_of_requests_are_mapped_side_by_side(tmp_path: Path, packed: bool) -> None:
    (tmp_path / "start").write_bytes(bytes(PAGE))
    with serving(tmp_path, Placement(0, PAGE, str(tmp_path / "start")), packed=packed) as (both, driver):
        driver.map(1, shm_offset=0, len=PAGE)
        assert driver.mappings() == ((0, PAGE, 0, False), (PAGE, PAGE, 0, False))
        driver.unmap(shm_offset=PAGE, len=PAGE)
        assert both.frontend.shm[0].mappings == ((0, PAGE, 0, False),)


def test_more_mappings_than_fit_into_an_answer_are_listed_whole(tmp_path: Path, packed: bool) -> None:
    with serving(tmp_path, packed=packed) as (both, driver):
        for number in range(2 * AT_ONCE + 1):
            driver.map(1, shm_offset=2 * number * PAGE, len=PAGE, fd_offset=number % 64 * PAGE)
            if number + 1 in (AT_ONCE - 1, AT_ONCE, AT_ONCE + 1, 2 * AT_ONCE, 2 * AT_ONCE + 1):
                assert driver.mappings() == both.frontend.shm[0].mappings
        assert len(driver.mappings()) == 2 * AT_ONCE + 1


def test_every_queue_takes_requests(tmp_path: Path, packed: bool) -> None:
    with serving(tmp_path, packed=packed) as (both, driver):
        driver.map(1, shm_offset=0, len=PAGE)
        assert ShmDriver(both.frontend, queue=1, size=4).mappings() == ((0, PAGE, 0, False),)


def test_a_reset_takes_all_away_and_requests_map_again(tmp_path: Path, packed: bool) -> None:
    with serving(tmp_path, packed=packed) as (both, driver):
        driver.map(1, shm_offset=0, len=PAGE)
        both.frontend.reset()
        assert both.frontend.shm[0].mappings == ()
        again = ShmDriver(both.frontend)
        assert again.mappings() == ()
        again.map(1, shm_offset=0, len=PAGE)
        assert both.frontend.shm[0].read(0, PAGE) == CONTENT[:PAGE]


# What is answered with a no


def request(op: int = MapperOp.MAP, **fields: int) -> MapperRequest:
    """A request for a page of file 0, but for `fields`."""
    return MapperRequest(**{"op": op, "len": PAGE} | fields)


@pytest.mark.parametrize(
    ("asked", "text"),
    [
        (request(op=0), "request op 0x0 is none of 1 (MAP), 2 (UNMAP), 3 (MAPPINGS)"),
        (request(op=4), "request op 0x4 is none of"),
        (request(op=0xFFFFFFFF), "request op 0xffffffff is none of"),
        (request(shmid=1), "request shmid 0x1 is no region"),
        (request(MapperOp.UNMAP, shmid=0xFFFFFFFF), "request shmid 0xffffffff is no region"),
        (request(MapperOp.MAPPINGS, shmid=8), "request shmid 0x8 is no region"),
        (request(file=2), "request file 0x2 is not below 2"),
        (request(file=0xFFFFFFFF), "request file 0xffffffff is not below 2"),
        (request(flags=2), "request flags 0x2 is not within 0x1"),
        (request(flags=0xFFFFFFFE), "request flags 0xfffffffe is not within 0x1"),
        (request(file=1, flags=1), "request flags 0x1 is WRITABLE, but file 1 is read-only"),
        (request(len=0), "len 0x0"),
        (request(len=PAGE - 1), "len 0xfff"),
        (request(shm_offset=1), "shm_offset 0x1"),
        (request(fd_offset=1), "fd_offset 0x1"),
        (request(shm_offset=16 * MIB), "passes region 0's end 0x1000000"),
        (request(shm_offset=(1 << 64) - PAGE, len=PAGE), "shm_offset 0xfffffffffffff000"),
        (request(len=(1 << 64) - PAGE), "len 0xfffffffffffff000"),
        (request(fd_offset=(1 << 64) - PAGE), "fd_offset 0xfffffffffffff000"),
        (request(shm_offset=MIB), "overlaps the mapping at 0x100000"),
        (request(MapperOp.UNMAP), "is not one whole mapping"),
        (request(MapperOp.UNMAP, shm_offset=MIB), "is not one whole mapping"),
    ],
)
def test_what_makes_no_sense_is_invalid_and_sends_nothing(
    tmp_path: Path, packed: bool, asked: MapperRequest, text: str
) -> None:
    with serving(tmp_path, packed=packed) as (both, driver):
        driver.map(1, shm_offset=MIB, len=2 * PAGE)
        before = both.frontend.counters
        with pytest.raises(RequestFailed) as failed:
            driver.ask(asked)
        assert failed.value.status == MapperStatus.INVALID
        assert text in str(failed.value)
        assert " was answered with INVALID: " in str(failed.value)
        assert both.frontend.counters == before
        assert driver.mappings() == both.frontend.shm[0].mappings == ((MIB, 2 * PAGE, 0, False),)


def test_what_the_front_end_refuses_is_refused(tmp_path: Path, packed: bool) -> None:
    with serving(tmp_path, packed=packed) as (both, driver):
        with pytest.raises(RequestFailed, match=r"MAP was answered with REFUSED: .*the file has 0x40000 bytes") as failed:
            driver.map(0, shm_offset=0, len=65 * PAGE)
        assert failed.value.status == MapperStatus.REFUSED
        assert both.frontend.counters.refused == 1
        driver.map(0, shm_offset=0, len=64 * PAGE)
        assert both.frontend.shm[0].read(0, 64 * PAGE) == CONTENT


@pytest.mark.parametrize("size", [1, REQUEST.size - 1])
def test_a_request_that_is_too_short_is_invalid(tmp_path: Path, packed: bool, size: int) -> None:
    with serving(tmp_path, packed=packed) as (_, driver):
        answer = driver.queue.exchange(request().pack()[:size], 100)
        assert answer == b"\2" + f"request size {size:#x} is not the 40 bytes of a request".encode()
        assert driver.mappings() == ()


def test_what_is_no_request_comes_back_empty(tmp_path: Path, packed: bool) -> None:
    """As it does with a driver of another device."""
    with serving(tmp_path, packed=packed) as (_, driver):
        assert driver.queue.exchange(request().pack()) == b""
        assert driver.queue.exchange(b"", 1000) == b""
        assert driver.queue.exchange(b"anything") == b""
        assert driver.mappings() == ()


@pytest.mark.parametrize("room", [1, 2, ENTRY.size, ENTRY.size + 1, 2 * ENTRY.size])
def test_an_answer_is_as_long_as_there_is_room(tmp_path: Path, packed: bool, room: int) -> None:
    with serving(tmp_path, packed=packed) as (_, driver):
        driver.map(1, shm_offset=0, len=PAGE)
        driver.map(1, shm_offset=PAGE, len=PAGE)
        whole = (room - 1) // ENTRY.size * ENTRY.size
        listed = ENTRY.pack(0, PAGE, 0, 0)
        assert driver.queue.exchange(request(MapperOp.MAPPINGS).pack(), room) == b"\0" + listed[:whole]
        words = b"SHMEM_MAP shm_offset 0x0 + len 0x1000 overlaps the mapping at 0x0 that ends at 0x1000"
        assert driver.queue.exchange(request(MapperOp.MAP).pack(), room) == (b"\2" + words)[:room]
        assert driver.queue.exchange(request(MapperOp.UNMAP).pack(), room) == b"\0"


def test_a_request_may_lie_in_many_pieces(tmp_path: Path, packed: bool) -> None:
    with serving(tmp_path, packed=packed) as (both, driver):
        data = request(shm_offset=PAGE).pack() + b"and what is behind does not matter"
        ticket = driver.queue.submit([data[:1], data[1:39], data[39:]], [1, 10])
        assert driver.queue.finish(ticket).data == b"\0"
        assert both.frontend.shm[0].mappings == ((PAGE, PAGE, 0, False),)


# The driver against devices that are none


@pytest.mark.parametrize(
    ("answer", "error", "text"),
    [
        (b"", RemoteProtocolError, "the device gave no status"),
        (b"\0" + bytes(31), RemoteProtocolError, "answered with 31 bytes, no whole mappings"),
        (b"\0" + ENTRY.pack(8, 4, 0, 0) + ENTRY.pack(4, 4, 0, 0), RemoteProtocolError, "from 0xc on was answered with one"),
        (b"\0" + ENTRY.pack(0, 8, 0, 0) * 2, RemoteProtocolError, "from 0x8 on was answered with one at 0x0"),
        (b"\0" + ENTRY.pack(0, 0, 0, 0) * AT_ONCE, RemoteProtocolError, "len 0x0 is not between 1 and 0x10000000000000000"),
        (b"\0" + ENTRY.pack((1 << 64) - 1, 2, 0, 0), RemoteProtocolError, r"shm_offset 0xf{16} \+ len 0x2 passes 0x10{16}"),
        (b"\7why not", RequestFailed, "MAPPINGS was answered with status 7: why not"),
        (b"\1\xff\xfe", RequestFailed, r"MAPPINGS was answered with REFUSED: \\xff\\xfe"),
        (b"\2", RequestFailed, "MAPPINGS was answered with INVALID: no more"),
    ],
)
def test_an_answer_that_is_none_is_said_to_be(answer: bytes, error: type[Exception], text: str) -> None:
    def reply(chain: DescriptorChain) -> None:
        chain.write(answer)

    with joined(Answering(reply)) as both:
        both.frontend.share_memory(MIB)
        with pytest.raises(error, match=text):
            ShmDriver(both.frontend).mappings()


def test_a_list_of_mappings_without_end_is_refused() -> None:
    def reply(chain: DescriptorChain) -> None:
        start = MapperRequest.unpack(chain.read()).shm_offset
        chain.write(b"\0" + b"".join(ENTRY.pack(start + at, 1, 0, 0) for at in range(AT_ONCE)))

    with joined(Answering(reply)) as both:
        both.frontend.share_memory(MIB)
        with pytest.raises(RemoteProtocolError, match="MAPPINGS was answered with more than 16384"):
            ShmDriver(both.frontend).mappings()


def test_a_list_may_end_where_addresses_do() -> None:
    rows = [ENTRY.pack((1 << 64) - AT_ONCE + at, 1, 0, 0) for at in range(AT_ONCE)]
    with joined(Answering(lambda chain: chain.write(b"\0" + b"".join(rows)))) as both:
        both.frontend.share_memory(MIB)
        assert len(ShmDriver(both.frontend).mappings()) == AT_ONCE


@pytest.mark.parametrize("fields", [{"shm_offset": -1}, {"len": 1 << 64}, {"file": 1 << 32}, {"shmid": -1}])
def test_a_number_that_has_no_room_is_not_sent(fields: dict[str, int]) -> None:
    with joined(Answering(lambda chain: None)) as both:
        both.frontend.share_memory(MIB)
        (name,) = fields
        with pytest.raises(LocalProtocolError, match=f"request {name} .* is not between 0 and"):
            ShmDriver(both.frontend).map(**{"file": 0, "shm_offset": 0, "len": PAGE} | fields)  # type: ignore[arg-type]
