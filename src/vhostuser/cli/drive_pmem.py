"""`vhu drive pmem`: read, write and flush persistent memory without a VM."""

from __future__ import annotations

import argparse
import json
import os
from collections.abc import Callable, Mapping
from typing import Final

from ..drivers.pmem import PmemDriver
from ..frontend import Frontend
from .arguments import size
from .info import in_units
from .outcome import put, put_bytes

PIECE: Final = 1 << 20
"""Bytes that are read or written at a time."""


def _info(frontend: Frontend, options: argparse.Namespace) -> None:
    pmem = PmemDriver(frontend, timeout=options.timeout)
    mapped = sum(each.len for each in pmem.region.mappings)
    writable = all(each.writable for each in pmem.region.mappings)
    words = (
        f"{'size:':12}{in_units(pmem.size)}\n{'mapped:':12}{in_units(mapped)}, {'read-write' if writable else 'read-only'}"
    )
    _show(options, {"size": pmem.size, "mapped": mapped, "writable": writable}, words)


def _read(frontend: Frontend, options: argparse.Namespace) -> None:
    pmem, kept = PmemDriver(frontend, timeout=options.timeout), []
    end = options.offset + options.count
    for start in range(options.offset, end, PIECE):
        data = pmem.read(start, min(PIECE, end - start))
        if options.json:
            kept.append(data)
        else:
            put_bytes(data)
    if options.json:
        put(json.dumps({"offset": options.offset, "count": options.count, "data": b"".join(kept).hex()}))


def _write(frontend: Frontend, options: argparse.Namespace) -> None:
    pmem, at = PmemDriver(frontend, timeout=options.timeout), options.offset
    with open(0 if options.file == "-" else options.file, "rb", closefd=options.file != "-") as file:
        while data := file.read(PIECE):
            pmem.write(at, data)
            at += len(data)
    pmem.flush()
    count = at - options.offset
    _show(options, {"offset": options.offset, "count": count}, f"{count} bytes written at {options.offset}, and flushed")


def _flush(frontend: Frontend, options: argparse.Namespace) -> None:
    PmemDriver(frontend, timeout=options.timeout).flush()
    _show(options, {"flushed": True}, "flushed")


def _show(options: argparse.Namespace, values: Mapping[str, object], words: str) -> None:
    put(json.dumps(values) if options.json else words)


Row = tuple[Mapping[str, Callable[[str], object]], str, Callable[[Frontend, argparse.Namespace], None]]
ACTIONS: Final[Mapping[str, Row]] = {
    "info": ({}, "how large it is, and what is mapped", _info),
    "read": ({"OFFSET": size, "COUNT": size}, "bytes (4096, 4K, 1M) to standard output", _read),
    "write": ({"OFFSET": size, "FILE": os.fsdecode}, "all of FILE, or - (standard input), and flush", _write),
    "flush": ({}, "make durable what was written", _flush),
}
