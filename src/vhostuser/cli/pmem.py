"""`vhu-pmem`: a file as a guest's persistent memory, by QEMU's conventions for back-end programs."""

from __future__ import annotations

import argparse
import logging
import sys
from typing import Final

from ..devices.image import MOST_COPIED, Image
from ..devices.pmem import PersistentMemory
from ..limited_log import printable
from .arguments import Parser, add_dialect
from .daemon import ENDING, add_once, add_seccomp, add_socket, daemon
from .logs import add_log_level

log = logging.getLogger(__name__)
PROGRAM: Final = "vhu-pmem"
CAPABILITIES: Final = {"type": "rpmsg"}
"""vhost-user.json has no type for persistent memory. This one is the nearest, and nothing starts such a back-end unasked."""
EPILOG: Final = f"""
In the guest it is /dev/pmem0; a file system with blocks of 4096 bytes can be mounted with -o dax. What is written is safe
once it was synced there. With QEMU 11.1:
  -device vhost-user-test-device-pci,virtio-id=27,num_vqs=1,config_size=16,chardev=...

The image is a regular file of 2 MiB or more, its size a power of two. It is locked against other vhu-pmem and vhu-blk. Don't
truncate it meanwhile, and give it all its space (fallocate -l): a VMM dies of memory that the host can't provide.
With --read-only the guest gets a copy in memory of it, {MOST_COPIED >> 30} GiB at most, padded with zeros. It can write
to that copy, but no flush succeeds, and the copy is lost at the end. Mount it with -o ro.
{ENDING}"""


def main(argv: list[str] | None = None) -> int:
    """Run `vhu-pmem`; its exit code."""
    return daemon(_parser, _device, program=PROGRAM, capabilities=CAPABILITIES, argv=argv)


def _parser() -> Parser:
    text = "A vhost-user back-end that is persistent memory: a file, mapped into the guest."
    parser = Parser(PROGRAM, text, epilog=EPILOG)
    add_socket(parser)
    parser.add_argument("--image", required=True, metavar="FILE", help="a regular file")
    parser.add_argument("--read-only", action="store_true", help="never write to it: the guest gets a copy")
    add_seccomp(parser)
    add_once(parser)
    add_dialect(parser)
    add_log_level(parser)
    return parser


def _device(options: argparse.Namespace) -> PersistentMemory:
    image = Image(options.image, read_only=options.read_only)
    access = "a copy of it" if image.read_only else "read-write"
    log.info("serving %s, a region of %d bytes, %s", printable(image.path), image.size, access)
    return PersistentMemory(image)


if __name__ == "__main__":
    sys.exit(main())
