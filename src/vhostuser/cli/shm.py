"""`vhu-shm`: a back-end that shows files in shared memory regions, by QEMU's conventions for back-end programs."""

from __future__ import annotations

import argparse
import logging
import sys
from typing import Final

from ..devices.shm import MappedFiles, Offer
from ..protocol.numbers import MAX_QUEUES
from .arguments import Parser, add_dialect, between, checked, placement, region
from .daemon import ENDING, add_once, add_seccomp, add_socket, daemon
from .logs import add_log_level
from .outcome import CommandError, Exit

log = logging.getLogger(__name__)
PROGRAM: Final = "vhu-shm"
CAPABILITIES: Final = {"type": "rpmsg"}
"""vhost-user.json has no type for memory alone. This one is the nearest, and nothing starts such a back-end unasked."""
EPILOG: Final = f"""
A file is mapped in the length that it has at the start, which must be whole pages (4096 bytes): no front-end maps what lies
behind a file's end. Mapping happens when a driver takes the device, and again after a reset.

On every queue the driver may ask for more, as with `vhu drive shm`. A request has 40 bytes, in little-endian order:
  le32 op           1 map, 2 unmap, 3 list mappings
  le32 shmid        the region
  le32 file         map: which --file, from 0 on
  le32 flags        map: 1 to write, too, if the file is one with :rw
  le64 shm_offset   where in the region; list: where to begin
  le64 len          map, unmap: bytes
  le64 fd_offset    map: where in the file
The answer is a status byte: 0 done, 1 the front-end said no, 2 invalid or against the protocol, so that nothing was sent to
it. After that, as far as there is room: the mappings (of le64: shm_offset, len, fd_offset, flags), or why not, in words.
{ENDING}"""


def main(argv: list[str] | None = None) -> int:
    """Run `vhu-shm`; its exit code."""
    return daemon(_parser, _device, program=PROGRAM, capabilities=CAPABILITIES, argv=argv)


def _parser() -> Parser:
    parser = Parser(
        PROGRAM,
        "A vhost-user back-end that maps files into VIRTIO shared memory regions, at the start or on request.",
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
    parser.add_argument(
        "--file",
        type=checked(offer),
        action="append",
        default=[],
        metavar="FILE[:rw]",
        help="map parts of this file when the driver asks for it, read-only unless :rw is added (repeat for more)",
    )
    parser.add_argument("--num-queues", type=between(1, MAX_QUEUES), default=8, metavar="N", help="queues (default 8)")
    add_seccomp(parser)
    add_once(parser)
    add_dialect(parser)
    add_log_level(parser)
    return parser


def offer(text: str) -> Offer:
    """FILE[:rw]; ValueError if it is none."""
    path = text.removesuffix(":rw")
    if not path:
        raise ValueError(f"{text[:80]!a} is not FILE[:rw]")
    return Offer(path, writable=path != text)


def _device(options: argparse.Namespace) -> MappedFiles:
    regions = dict(options.region)
    if len(regions) < len(options.region):
        raise CommandError("two --region have the same shmid", f"try: {PROGRAM} --help", Exit.USAGE)
    device = MappedFiles(regions, options.map, options.file, num_queues=options.num_queues)
    total = sum(regions.values())
    if total & (total - 1):
        log.warning("the regions have %#x bytes together, which is no power of two: QEMU 11.1 aborts on that", total)
    return device


if __name__ == "__main__":
    sys.exit(main())
