"""The bytes of a chain, cut at every place: no piece is empty, none is lost, none comes twice."""

from __future__ import annotations

from itertools import product

import pytest

from vhostuser.virtio.chain import DescriptorChain, cut

by_count = pytest.mark.parametrize("count", range(4))


def views(lengths: tuple[int, ...]) -> list[memoryview]:
    """Buffers of these lengths; all their bytes differ."""
    numbers = iter(range(256))
    return [memoryview(bytearray(next(numbers) for _ in range(length))) for length in lengths]


@by_count
def test_pieces_are_the_bytes_from_a_start_on_and_none_is_empty(count: int) -> None:
    for lengths in product((0, 1, 2, 5), repeat=count):
        whole = bytes(range(sum(lengths)))
        for start in range(len(whole) + 2):
            for size in range(-1, len(whole) + 2):
                pieces = cut(views(lengths), start, size)
                assert b"".join(pieces) == whole[start : start + max(0, size)]
                assert all(piece.nbytes for piece in pieces)


@by_count
def test_two_reads_of_any_sizes_give_what_comes_next(count: int) -> None:
    for lengths in product((0, 1, 2, 5), repeat=count):
        whole = bytes(range(sum(lengths)))
        for first in range(-1, len(whole) + 2):
            for second in range(-1, len(whole) + 2):
                chain = DescriptorChain(0, views(lengths), [])
                assert chain.readable_size == len(whole)
                got = chain.read(first)
                assert got == (whole if first < 0 else whole[:first])
                left = whole[len(got) :]
                assert chain.read(second) == (left if second < 0 else left[:second])


@by_count
def test_two_writes_of_any_sizes_fill_what_comes_next(count: int) -> None:
    for lengths in product((0, 1, 2, 5), repeat=count):
        room = sum(lengths)
        for first in range(room + 2):
            for second in range(room + 2):
                buffers = views(lengths)
                chain = DescriptorChain(0, [], buffers)
                data = bytes(range(100, 100 + first + second))
                assert chain.writable_size == room
                assert chain.write(data[:first]) == min(first, room)
                rest = data[chain.written : chain.written + second] if first <= room else b"ab"[:second]
                assert chain.write(rest) == min(len(rest), room - min(first, room))
                filled = (data[: min(first, room)] + rest)[:room]
                assert chain.written == len(filled)
                assert b"".join(buffers) == filled + bytes(range(room))[len(filled) :]
