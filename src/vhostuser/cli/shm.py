"""`vhu-shm`: a back-end that shows files in shared memory regions, by QEMU's conventions for back-end programs."""

from __future__ import annotations

import argparse
import logging
import sys
from typing import Final

from ..devices.shm import MappedFiles
from ..protocol.numbers import MAX_QUEUES
from .arguments import Parser, add_dialect, between, checked, placement, region
from .daemon import ENDING, add_once, add_socket, daemon
from .logs import add_log_level
from .outcome import CommandError, Exit

log = logging.getLogger(__name__)
PROGRAM: Final = "vhu-shm"
CAPABILITIES: Final = {"type": "rpmsg"}
"""vhost-user.json has no type for memory alone. This one is the nearest, and nothing starts such a back-end unasked."""
EPILOG: Final = f"""
A file is mapped in the length that it has at the start, which must be whole pages (4096 bytes): no front-end maps what lies
behind a file's end. Mapping happens when a driver takes the device, and again after a reset.
{ENDING}"""


def main(argv: list[str] | None = None) -> int:
    """Run `vhu-shm`; its exit code."""
    return daemon(_parser, _device, program=PROGRAM, capabilities=CAPABILITIES, argv=argv)


def _parser() -> Parser:
    parser = Parser(
        PROGRAM,
        "A vhost-user back-end that maps files into VIRTIO shared memory regions.",
        epilog=EPILOG,
    )
    add_socket(parser)
    parser.add_argument(
        "--region",
        type=checked(region),
        action="append",
        required=True,
        metavar="SHMID:SIZE",
        help="a shared memory region, as 0:64M; all of them together a power of two for QEMU 11.1 (repeat for more)",
    )
    parser.add_argument(
        "--map",
        type=checked(placement),
        action="append",
        default=[],
        metavar="SHMID:OFFSET:FILE[:rw]",
        help="map this whole file, read-only unless :rw is added (repeat for more)",
    )
    parser.add_argument("--num-queues", type=between(1, MAX_QUEUES), default=8, metavar="N", help="queues (default 8)")
    add_once(parser)
    add_dialect(parser)
    add_log_level(parser)
    return parser


def _device(options: argparse.Namespace) -> MappedFiles:
    regions = dict(options.region)
    if len(regions) < len(options.region):
        raise CommandError("two --region have the same shmid", f"try: {PROGRAM} --help", Exit.USAGE)
    device = MappedFiles(regions, options.map, num_queues=options.num_queues)
    total = sum(regions.values())
    if total & (total - 1):
        log.warning("the regions have %#x bytes together, which is no power of two: QEMU 11.1 aborts on that", total)
    return device


if __name__ == "__main__":
    sys.exit(main())
