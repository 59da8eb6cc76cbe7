"""`vhu drive`: use a device without a VM: block, entropy, console, file system, persistent or shared memory."""

from __future__ import annotations

import argparse
import json
import os
import random
import time
from collections.abc import Callable, Iterator, Mapping
from typing import Final, NamedTuple

from ..drivers import blk, pmem
from ..drivers.blk import DESCRIPTORS, BlockDriver
from ..drivers.rng import RngDriver
from ..errors import RequestFailed
from ..frontend import Frontend
from ..protocol.numbers import MAX_QUEUE_SIZE
from ..virtio.block import SECTOR, BlockFeature
from . import drive_fs, drive_pmem, drive_shm
from .arguments import Parser, between, checked, seconds, size
from .drive_console import drive_console
from .info import in_units
from .logs import add_log_level, log_to_stderr
from .outcome import CommandError, Exit, interrupt, on_end, put, put_bytes, reach

PROGRAM: Final = "vhu drive"
CONSOLE: Final = "console"
SHARED: Final = 16 << 20
"""Bytes of memory for the queue and its buffers."""
PIECE: Final = 1 << 20
"""Bytes that are read or written at a time."""
BLOCK: Final = 8
"""Sectors that a benchmark reads at a time: 4 KiB."""
LARGEST: Final = 1 << 63
FEATURES: Final = {"blk": blk.FEATURES, "pmem": pmem.FEATURES}
"""What the drivers make use of."""
SYNOPSIS: Final = "vhu drive [-h] [--json] [--depth N] [--seconds S] [--timeout S] DEVICE SOCKET ACTION [ARGUMENT ...]"
Values = Mapping[str, object]


class Action(NamedTuple):
    """What may be done with a device: the kinds of its arguments by name, what it does, and how."""

    arguments: Mapping[str, Callable[[str], object]]
    what: str
    act: Callable[[Frontend, argparse.Namespace], None]


def drive(arguments: list[str]) -> int:
    """Run `vhu drive`; its exit code."""
    if arguments[:1] == [CONSOLE]:
        return drive_console(arguments[1:])
    parser = _parser()
    options = parser.parse_intermixed_args(arguments)
    action = _action(parser, options)
    log_to_stderr(PROGRAM, options.log_level)
    on_end(interrupt)

    def connect() -> Frontend:
        features = FEATURES.get(options.device, 0)
        return Frontend.connect(options.socket, features=features, reply_timeout=options.timeout)

    with reach(options.socket, connect) as frontend:
        frontend.share_memory(SHARED)
        action.act(frontend, options)
    return Exit.DONE


def _parser() -> Parser:
    parser = Parser(PROGRAM, "Use a device without a VM: be its driver.", epilog=EPILOG)
    parser.usage = SYNOPSIS
    parser.add_argument("device", metavar="DEVICE", choices=(*DEVICES, CONSOLE), help=" or ".join((*DEVICES, CONSOLE)))
    parser.add_argument("socket", metavar="SOCKET", help="the back-end's Unix socket")
    parser.add_argument("action", metavar="ACTION", help="what to do: see below")
    parser.add_argument("arguments", metavar="ARGUMENT", nargs="*", help="numbers are decimal or 0x hexadecimal")
    parser.add_argument("--json", action="store_true", help="one JSON object, with data in hexadecimal")
    most = MAX_QUEUE_SIZE // DESCRIPTORS
    depth = "requests in flight of a bench (default 32)"
    parser.add_argument("--depth", type=between(1, most), default=32, metavar="N", help=depth)
    length = "seconds that a bench takes (default 2)"
    parser.add_argument("--seconds", type=checked(seconds), default=2.0, metavar="S", help=length)
    wait = "seconds for an answer (default 10)"
    parser.add_argument("--timeout", type=checked(seconds), default=10.0, metavar="S", help=wait)
    add_log_level(parser, "warn")
    return parser


def _action(parser: Parser, options: argparse.Namespace) -> Action:
    """The action that was asked for, with its arguments put into the options by name; ends if they are wrong."""
    if options.device == CONSOLE:
        raise CommandError("a console has no action", f"try: {PROGRAM} {CONSOLE} SOCKET", Exit.USAGE)
    actions = DEVICES[options.device]
    if options.action not in actions:
        parser.error(f"{options.device} has no action {options.action[:40]!a}: there are {', '.join(actions)}")
    action = actions[options.action]
    if len(options.arguments) != len(action.arguments):
        wanted = " ".join(["takes", *action.arguments]) if action.arguments else "takes no argument"
        parser.error(f"{options.action} {wanted}")
    for (name, convert), text in zip(action.arguments.items(), options.arguments, strict=True):
        try:
            setattr(options, name.lower(), convert(text))
        except (ValueError, argparse.ArgumentTypeError) as error:
            parser.error(f"{options.action} {name}: {error}")
    return action


def _show(options: argparse.Namespace, values: Values, words: str) -> None:
    put(json.dumps(values) if options.json else words)


# The block device


def _disk(frontend: Frontend, options: argparse.Namespace, depth: int = 1) -> BlockDriver:
    """A driver with room for `depth` requests."""
    descriptors = 1 << (depth * DESCRIPTORS - 1).bit_length()
    return BlockDriver(frontend, size=descriptors, timeout=options.timeout)


def _blk_info(frontend: Frontend, options: argparse.Namespace) -> None:
    disk = _disk(frontend, options)
    config, names = disk.config, sorted(each.name for each in disk.features)
    queues = config.num_queues if BlockFeature.MQ in disk.features else 1
    try:
        name: str | None = disk.identify()
    except RequestFailed:  # not every device has one
        name = None
    values: Values = {
        "capacity": disk.capacity * SECTOR,
        "sectors": disk.capacity,
        "block_size": disk.block_size,
        "queues": queues,
        "read_only": disk.read_only,
        "features": names,
        "id": name,
    }
    rows = [
        ("capacity", f"{in_units(disk.capacity * SECTOR)}, {disk.capacity} sectors of {SECTOR} bytes"),
        ("block size", f"{disk.block_size} bytes"),
        ("queues", str(queues)),
        ("read-only", "yes" if disk.read_only else "no"),
        ("features", " ".join(names) or "none"),
        ("id", name if name is not None else "none"),
    ]
    _show(options, values, "\n".join(f"{row + ':':12}{text}" for row, text in rows))


def _blk_read(frontend: Frontend, options: argparse.Namespace) -> None:
    disk, kept = _disk(frontend, options), []
    for first in range(options.sector, options.sector + options.count, PIECE // SECTOR):
        data = disk.read(first, min(PIECE // SECTOR, options.sector + options.count - first))
        if options.json:
            kept.append(data)
        else:
            put_bytes(data)
    if options.json:
        put(json.dumps({"sector": options.sector, "count": options.count, "data": b"".join(kept).hex()}))


def _blk_write(frontend: Frontend, options: argparse.Namespace) -> None:
    disk, sector = _disk(frontend, options), options.sector
    with open(0 if options.file == "-" else options.file, "rb", closefd=options.file != "-") as file:
        while data := file.read(PIECE):
            if len(data) % SECTOR:
                advice = f"try: pad it to a multiple of {SECTOR} bytes"
                raise CommandError(f"{options.file} does not end with a whole sector", advice)
            disk.write(sector, data)
            sector += len(data) // SECTOR
    count = sector - options.sector
    _show(options, {"sector": options.sector, "count": count}, f"{count} sectors written at {options.sector}")


def _blk_discard(frontend: Frontend, options: argparse.Namespace) -> None:
    _disk(frontend, options).discard(options.sector, options.count)
    values = {"sector": options.sector, "count": options.count}
    _show(options, values, f"{options.count} sectors discarded at {options.sector}")


def _blk_flush(frontend: Frontend, options: argparse.Namespace) -> None:
    _disk(frontend, options).flush()
    _show(options, {"flushed": True}, "flushed")


def _blk_bench(frontend: Frontend, options: argparse.Namespace) -> None:
    disk = _disk(frontend, options, options.depth)
    if disk.capacity < BLOCK:
        raise CommandError(f"a bench needs {BLOCK} sectors, the device has {disk.capacity}")
    began = time.monotonic()
    places = _at_random(disk.capacity // BLOCK, began + options.seconds)
    requests = sum(1 for _ in disk.read_many(places, depth=options.depth))
    took = time.monotonic() - began
    per_second = round(requests / took)
    values = {"depth": options.depth, "seconds": round(took, 3), "requests": requests, "requests_per_second": per_second}
    words = f"{per_second} reads of 4 KiB a second, at random, {options.depth} in flight: {requests} in {took:.2f} s"
    _show(options, values, words)


def _at_random(blocks: int, end: float) -> Iterator[tuple[int, int]]:
    """Where to read, until the time is over; once at least."""
    while True:
        yield random.randrange(blocks) * BLOCK, BLOCK
        if time.monotonic() >= end:
            return


# The entropy device


def _rng_get(frontend: Frontend, options: argparse.Namespace) -> None:
    rng, kept = RngDriver(frontend, timeout=options.timeout), []
    for left in range(options.n, 0, -PIECE):
        data = rng.get(min(PIECE, left))
        if options.json:
            kept.append(data)
        else:
            put_bytes(data)
    if options.json:
        put(json.dumps({"count": options.n, "data": b"".join(kept).hex()}))


_WHERE: Final = {"SECTOR": between(0, LARGEST), "COUNT": between(1, (1 << 32) - 1)}
DEVICES: Final[Mapping[str, Mapping[str, Action]]] = {
    "blk": {
        "info": Action({}, "capacity, block size, queues, features and id", _blk_info),
        "read": Action(_WHERE, "sectors of 512 bytes to standard output", _blk_read),
        "write": Action(
            {"SECTOR": between(0, LARGEST), "FILE": os.fsdecode},
            "whole sectors from FILE, or - (standard input)",
            _blk_write,
        ),
        "flush": Action({}, "make durable what was written", _blk_flush),
        "discard": Action(_WHERE, "give sectors up", _blk_discard),
        "bench": Action({}, "read 4 KiB at random places, --depth at a time, for --seconds", _blk_bench),
    },
    "rng": {"get": Action({"N": size}, "N random bytes (4096, 4K, 1M) to standard output", _rng_get)},
    "fs": {name: Action(*row) for name, row in drive_fs.ACTIONS.items()},
    "shm": {name: Action(*row) for name, row in drive_shm.ACTIONS.items()},
    "pmem": {name: Action(*row) for name, row in drive_pmem.ACTIONS.items()},
}
EPILOG: Final = "\n".join(
    [
        "actions:",
        *(
            f"  {device} SOCKET {' '.join([name, *action.arguments])}".ljust(34) + action.what
            for device, actions in DEVICES.items()
            for name, action in actions.items()
        ),
        "  console SOCKET".ljust(34) + "be the guest of a console: see vhu drive console --help",
        "",
        "exit status: 0 done; 1 failed, or the device said no; 2 usage; 3 the back-end broke the protocol or is not there",
    ]
)
