"""`vhu-shm`: a back-end that shows files in shared memory regions, by QEMU's conventions for back-end programs."""

from __future__ import annotations

import argparse
import json
import logging
import sys
from typing import Final

from ..backend import Backend
from ..devices.shm import MappedFiles
from ..protocol.numbers import MAX_QUEUES
from ..transport.listen import systemd_fd
from .arguments import Parser, add_dialect, between, checked, dialect_of, placement, region
from .logs import add_log_level, log_to_stderr
from .outcome import CommandError, Exit, on_end, program_arguments, put, run

log = logging.getLogger(__name__)
PROGRAM: Final = "vhu-shm"
CAPABILITIES: Final = {"type": "rpmsg"}
"""vhost-user.json has no type for memory alone. This one is the nearest, and nothing starts such a back-end unasked."""
EPILOG: Final = """
A file is mapped in the length that it has at the start, which must be whole pages (4096 bytes): no front-end maps what lies
behind a file's end. Mapping happens when a driver takes the device, and again after a reset.

exit status: 0 the front-end went or a signal came, 1 failed, 2 usage, 3 the front-end broke the protocol
SIGTERM, SIGINT and SIGHUP end it cleanly; the second one ends it at once.
"""


def main(argv: list[str] | None = None) -> int:
    """Run `vhu-shm`; its exit code."""
    arguments = program_arguments(argv)
    return run(PROGRAM, lambda: _command(arguments))


def _command(arguments: list[str]) -> int:
    if "--print-capabilities" in arguments:
        put(json.dumps(CAPABILITIES))
        return Exit.DONE
    options = _parser().parse_args(arguments)
    log_to_stderr(PROGRAM, options.log_level)
    with _device(options) as device:
        backend = Backend(device, dialect=dialect_of(options))
        on_end(backend.stop)
        _serve(backend, options)
    return Exit.DONE


def _parser() -> Parser:
    parser = Parser(
        PROGRAM,
        "A vhost-user back-end that maps files into VIRTIO shared memory regions.",
        epilog=EPILOG,
    )
    where = parser.add_mutually_exclusive_group()
    where.add_argument("--socket-path", metavar="PATH", help="listen on this Unix socket")
    where.add_argument(
        "--fd", type=between(0, 2**31 - 1), help="use this socket, listening or connected (default: systemd's)"
    )
    parser.add_argument("--print-capabilities", action="store_true", help="print capabilities as JSON, and do nothing else")
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
    often = parser.add_mutually_exclusive_group()
    often.add_argument("--once", action="store_true", help="end when the front-end goes (the default)")
    often.add_argument("--reconnect", action="store_true", help="serve one front-end after the other")
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


def _serve(backend: Backend, options: argparse.Namespace) -> None:
    once = not options.reconnect
    if options.socket_path is not None:
        backend.serve(options.socket_path, once=once)
        return
    fd = options.fd if options.fd is not None else systemd_fd()
    if fd is None:
        raise CommandError("neither --socket-path nor --fd is given", "try: --socket-path /tmp/shm.sock", Exit.USAGE)
    backend.serve_fd(fd, once=once)


if __name__ == "__main__":
    sys.exit(main())
