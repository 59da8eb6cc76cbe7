"""`vhu-blk`: a file or a block device as a disk, by QEMU's conventions for back-end programs."""

from __future__ import annotations

import argparse
import logging
import sys
from typing import Final

from .. import _native
from ..devices.blk import QUEUE_SIZE, BlockDevice
from ..devices.disk import Disk
from ..limited_log import printable
from ..protocol.numbers import MAX_QUEUES
from .arguments import Parser, between, checked, number
from .daemon import ENDING, add_rest, add_socket, daemon
from .outcome import CommandError, Exit

log = logging.getLogger(__name__)
PROGRAM: Final = "vhu-blk"
CAPABILITIES: Final = {"type": "block", "features": ["read-only", "blk-file"]}
SMALLEST_QUEUE, LARGEST_QUEUE = 4, 1 << 15
MOST_SPIN: Final = 1_000_000
EPILOG: Final = f"""
The file is locked: no other vhu-blk writes to it meanwhile, nor QEMU. Several may serve it if all of them are --read-only.
A request is at most 128 descriptors long, as QEMU's ring is; for a smaller ring give its size as --queue-size.
{ENDING}"""


def main(argv: list[str] | None = None) -> int:
    """Run `vhu-blk`; its exit code."""
    return daemon(_parser, _device, program=PROGRAM, capabilities=CAPABILITIES, argv=argv)


def _parser() -> Parser:
    parser = Parser(PROGRAM, "A vhost-user back-end that is a disk: its sectors are those of a file.", epilog=EPILOG)
    add_socket(parser)
    parser.add_argument("--blk-file", required=True, metavar="FILE", help="a regular file, or a block device")
    parser.add_argument("--read-only", action="store_true", help="let nobody write to it")
    parser.add_argument(
        "--num-queues",
        type=between(1, MAX_QUEUES),
        default=8,
        metavar="N",
        help="queues (default 8; QEMU takes one for each CPU of the guest)",
    )
    parser.add_argument(
        "--queue-size",
        type=checked(queue_size),
        default=QUEUE_SIZE,
        metavar="N",
        help=f"the largest ring that is taken (default {QUEUE_SIZE})",
    )
    parser.add_argument(
        "--handler",
        choices=("native", "python"),
        help="who does reads, writes and flushes: compiled code, a thread a queue (the default, if it was built), or Python",
    )
    parser.add_argument(
        "--spin",
        type=between(0, MOST_SPIN),
        default=50,
        metavar="MICROSECONDS",
        help="how long a queue is looked at for the next request before its thread sleeps (default 50; 0 for not at all)",
    )
    add_rest(parser)
    return parser


def queue_size(text: str) -> int:
    """A number of descriptors: room for a request in three parts at least; ValueError if it is none."""
    size = number(text)
    if not SMALLEST_QUEUE <= size <= LARGEST_QUEUE or size & (size - 1):
        raise ValueError(f"{text} is no power of two between {SMALLEST_QUEUE} and {LARGEST_QUEUE}")
    return size


def _device(options: argparse.Namespace) -> BlockDevice:
    if options.handler == "native" and not _native.accelerated:
        text = "--handler native needs the compiled half, which was not built or is switched off by VHOSTUSER_PURE"
        raise CommandError(text, "try: --handler python", Exit.USAGE)
    disk = Disk(options.blk_file, read_only=options.read_only)
    access = "read-only" if disk.read_only else "read-write"
    log.info("serving %s, %d bytes, %s", printable(disk.path), disk.size, access)
    native = options.handler != "python"
    device = BlockDevice(disk, num_queues=options.num_queues, queue_size=options.queue_size, native=native)
    device.spin = options.spin
    return device


if __name__ == "__main__":
    sys.exit(main())
