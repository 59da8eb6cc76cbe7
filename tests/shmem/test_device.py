"""A device's `map` and `unmap`: what is refused here is never sent, and what the front-end refuses is reported."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.relations import BASE, OVERLAPPING, RELATIONS
from vhostuser import Device, LocalProtocolError, Mapping, MapRequest, RequestFailed
from vhostuser.testing import memory_file, sparse_file, usage
from vhostuser.transport.fds import OwnedFd

from .conftest import PAGE, PAGES, SIZES, Pair

TOP = 1 << 64
END = SIZES[0]


def done(pair: Pair, work: Callable[[Device], object]) -> object:
    """What `work` of the device returned or raised; the front-end serves meanwhile."""
    results: list[object] = []

    def run(device: Device, request: bytes) -> bytes:
        try:
            results.append(work(device))
        except Exception as error:
            results.append(error.with_traceback(None))
        return b"."

    pair.device.work = run
    assert pair.ask() == b"."
    return results[0]


def refused_here(pair: Pair, work: Callable[[Device], object], match: str) -> None:
    """A LocalProtocolError; the front-end has seen nothing, and nothing has changed."""
    before, held, seen = pair.device.shm[0].mappings, usage(), pair.frontend.counters.messages
    error = done(pair, work)
    assert isinstance(error, LocalProtocolError), error
    assert match in str(error)
    assert (pair.device.shm[0].mappings, usage(), pair.frontend.counters.messages) == (before, held, seen)
    assert pair.frontend.shm[0].mappings == before


def map_at(fd: OwnedFd, start: int, end: int, *, fd_offset: int = 0) -> Callable[[Device], object]:
    return lambda device: device.shm[0].map(fd, shm_offset=start, len=end - start, fd_offset=fd_offset)


@pytest.mark.parametrize("relation", RELATIONS)
def test_sh02_a_map_beside_or_over_another(pair: Pair, relation: str) -> None:
    with sparse_file(END) as file:
        assert done(pair, map_at(file, *BASE)) is None
        new = map_at(file, *RELATIONS[relation])
        if relation in OVERLAPPING:
            refused_here(pair, new, "overlaps the mapping at 0x4000")
        else:
            assert done(pair, new) is None
    assert pair.frontend.shm[0].mappings == pair.device.shm[0].mappings


@pytest.mark.parametrize("relation", RELATIONS)
def test_sh03_an_unmap_takes_exactly_one_mapping(pair: Pair, relation: str) -> None:
    start, end = RELATIONS[relation]
    with sparse_file(END) as file:
        assert done(pair, map_at(file, *BASE)) is None
    work = lambda device: device.shm[0].unmap(shm_offset=start, len=end - start)  # noqa: E731
    if relation == "equals":
        assert done(pair, work) is None
        assert pair.frontend.shm[0].mappings == ()
    else:
        refused_here(pair, work, "SHMEM_UNMAP")


@pytest.mark.parametrize(
    ("numbers", "match"),
    [
        pytest.param(numbers, match, id=name)
        for name, numbers, match in (
            ("sh06-empty", (0, 0, 0), "len"),
            ("sh07-wraps", (TOP - PAGE, 2 * PAGE, 0), "0x"),
            ("sh07-beyond-64-bits", (TOP, PAGE, 0), "is not between 0 and 2^64"),
            ("sh07-negative", (-PAGE, PAGE, 0), "is not between 0 and 2^64"),
            ("sh07-negative-len", (0, -PAGE, 0), "is not between 0 and 2^64"),
            ("sh08-file-wraps", (0, 2 * PAGE, TOP - PAGE), "0x"),
            ("sh08-file-passes-2^63", (0, PAGE, (1 << 63) - PAGE), "0x"),
            ("sh09-offset-1", (1, PAGE, 0), "shm_offset"),
            ("sh09-file-512", (0, PAGE, 512), "fd_offset"),
            ("sh09-len-2048", (0, 2048, 0), "len"),
            ("sh10-past-the-end", (END - PAGE, 2 * PAGE, 0), "passes region 0's end"),
        )
    ],
)
def test_a_map_that_can_not_be(pair: Pair, numbers: tuple[int, int, int], match: str) -> None:
    start, len_, fd_offset = numbers
    with sparse_file(END) as file:
        refused_here(pair, map_at(file, start, start + len_, fd_offset=fd_offset), match)
        request = MapRequest(file, shm_offset=start, len=len_, fd_offset=fd_offset)
        fine = MapRequest(file, shm_offset=2 * PAGE, len=PAGE)
        refused_here(pair, lambda device: device.shm[0].map_many([fine, request]), match)
        assert done(pair, map_at(file, 0, END)) is None


def test_sh11_a_region_that_the_device_has_not(pair: Pair) -> None:
    assert isinstance(done(pair, lambda device: device.shm[1]), KeyError)


def test_sh12_what_the_front_end_refuses_is_reported_with_the_reason(pair: Pair, tmp_path: Path) -> None:
    reader, writer = os.pipe()
    fds = {
        "it is no regular file or memfd": OwnedFd(reader),
        "the file has 0x0 bytes, the mapping needs 0x1000": OwnedFd(os.memfd_create("empty")),
    }
    with OwnedFd(writer):
        for reason, fd in fds.items():
            with fd:
                error = done(pair, map_at(fd, 0, PAGE))
            assert isinstance(error, RequestFailed)
            assert (error.request, error.status) == ("SHMEM_MAP", 1)
            assert str(error).endswith(reason)
    with sparse_file(PAGE) as file:
        assert done(pair, map_at(file, 0, PAGE)) is None


def test_sh12_an_fd_that_is_closed_is_refused_here(pair: Pair) -> None:
    file = sparse_file(PAGE)
    number = file.fileno()
    file.close()
    for work in (
        lambda device: device.shm[0].map(number, shm_offset=0, len=PAGE),
        lambda device: device.shm[0].map_many([MapRequest(number, shm_offset=0, len=PAGE)]),
        lambda device: device.shm[0].map(-1, shm_offset=0, len=PAGE),
    ):
        assert isinstance(done(pair, work), OSError)
    assert pair.frontend.counters.messages == 0


def test_sh12_an_fd_of_a_path_only_is_refused_here(pair: Pair, tmp_path: Path) -> None:
    (tmp_path / "file").write_bytes(bytes(PAGE))
    with OwnedFd(os.open(tmp_path / "file", os.O_PATH)) as file, sparse_file(PAGE) as good:
        refused_here(pair, map_at(file, 0, PAGE), "for its path only (O_PATH)")
        rows = [MapRequest(good, 0, PAGE), MapRequest(file, PAGE, PAGE)]
        refused_here(pair, lambda device: device.shm[0].map_many(rows), "for its path only (O_PATH)")


def test_sh15_a_read_only_fd_is_not_mapped_read_write(pair: Pair, tmp_path: Path) -> None:
    (tmp_path / "file").write_bytes(bytes(PAGE))
    with OwnedFd(os.open(tmp_path / "file", os.O_RDONLY)) as file:
        error = done(pair, lambda device: device.shm[0].map(file, shm_offset=0, len=PAGE, writable=True))
        assert isinstance(error, RequestFailed)
        assert "not open for reading and writing" in str(error)
        assert done(pair, map_at(file, 0, PAGE)) is None


def test_sh18_padding_is_sent_as_zero_and_an_unmap_carries_nothing_else(pair: Pair) -> None:
    with memory_file(PAGES) as file:
        assert (
            done(pair, lambda device: device.shm[5].map(file, shm_offset=PAGE, len=PAGE, fd_offset=PAGE, writable=True))
            is None
        )
    assert pair.frontend.shm[5].mappings == (Mapping(PAGE, PAGE, PAGE, True),)


def test_sh26_the_quota_counts_all_regions_of_a_device(pair: Pair) -> None:
    with sparse_file(PAGE) as file:
        requests = [MapRequest(file, shm_offset=2 * at * PAGE, len=PAGE) for at in range(4095)]
        assert done(pair, lambda device: device.shm[7].map_many(requests)) == [None] * 4095
        assert done(pair, map_at(file, 0, PAGE)) is None
        refused_here(pair, map_at(file, PAGE, 2 * PAGE), "quota of 4096 live mappings")
        assert done(pair, lambda device: device.shm[7].unmap(shm_offset=0, len=PAGE)) is None
        assert done(pair, map_at(file, PAGE, 2 * PAGE)) is None


def test_many_answers_are_told_apart(pair: Pair) -> None:
    """Of requests under way together some are refused by the front-end: each result is that of its own request."""
    with sparse_file(4 * PAGE) as long, sparse_file(PAGE) as short:
        files = [long, short, long, short, long]
        requests = [
            MapRequest(file, shm_offset=2 * at * PAGE, len=2 * PAGE, writable=at == 4) for at, file in enumerate(files)
        ]
        results = done(pair, lambda device: device.shm[0].map_many(requests))
    assert isinstance(results, list)
    assert [type(result) for result in results] == [type(None), RequestFailed] * 2 + [type(None)]
    assert "the file has 0x1000 bytes, the mapping needs 0x2000" in str(results[1])
    offsets = [0, 4 * PAGE, 8 * PAGE]
    assert [mapping.shm_offset for mapping in pair.device.shm[0].mappings] == offsets
    assert pair.frontend.shm[0].mappings == pair.device.shm[0].mappings
    ranges = [(offset, 2 * PAGE) for offset in offsets]
    refused_here(pair, lambda device: device.shm[0].unmap_many([*ranges, (PAGE, PAGE)]), "SHMEM_UNMAP")
    refused_here(pair, lambda device: device.shm[0].unmap_many([ranges[0], ranges[0]]), "SHMEM_UNMAP")
    assert done(pair, lambda device: device.shm[0].unmap_many(ranges)) == [None] * 3
    assert pair.frontend.shm[0].mappings == pair.device.shm[0].mappings == ()


@pytest.mark.parametrize("count", [0, 1, 63, 64, 65, 200])
def test_any_number_of_requests_is_under_way(pair: Pair, count: int) -> None:
    requests = [(2 * at * PAGE, PAGE) for at in range(count)]
    with sparse_file(PAGE) as file:
        maps = [MapRequest(file, shm_offset=offset, len=size) for offset, size in requests]
        assert done(pair, lambda device: device.shm[7].map_many(maps)) == [None] * count
    assert [mapping[:2] for mapping in pair.frontend.shm[7].mappings] == requests
    assert done(pair, lambda device: device.shm[7].unmap_many(requests[::-1])) == [None] * count
    assert pair.frontend.shm[7].mappings == ()


def test_requests_that_overlap_each_other_are_refused_here(pair: Pair) -> None:
    with sparse_file(END) as file:
        rows = [MapRequest(file, shm_offset=0, len=2 * PAGE), MapRequest(file, shm_offset=PAGE, len=PAGE)]
        refused_here(pair, lambda device: device.shm[0].map_many(rows), "overlaps another request")
