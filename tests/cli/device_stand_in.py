"""A daemon whose device does as it is told: what its process can do still, it says.

`python -m tests.cli.device_stand_in OPTION...`; its options are those that all daemons have.
"""

from __future__ import annotations

import contextlib
import ctypes
import errno
import json
import os
import signal
import socket
import sys
from collections.abc import Callable

from vhostuser import Device
from vhostuser.cli.arguments import Parser
from vhostuser.cli.daemon import add_rest, add_socket, daemon
from vhostuser.virtio.chain import DescriptorChain

PTRACE_ATTACH = 16
libc = ctypes.CDLL(None, use_errno=True)


class Probe(Device):
    """Answers a request, a verb and arguments in JSON, with what came of it."""

    virtio_id = 42
    queue_sizes = (16,)

    def process(self, queue: int, chain: DescriptorChain) -> None:
        verb, *arguments = json.loads(chain.read())
        tried: Callable[..., object] = getattr(self, verb)
        try:
            answer = tried(*arguments)
        except (OSError, ImportError) as error:
            answer = errno.errorcode[error.errno] if isinstance(error, OSError) and error.errno else str(error)
        chain.write(json.dumps(answer).encode().ljust(1024))

    def execve(self) -> None:
        os.execve("/nowhere", ["nowhere"], {})

    def fork(self) -> str:
        child = os.fork()
        if not child:
            os._exit(0)
        os.waitpid(child, 0)
        return "forked"

    def ptrace(self) -> None:
        if libc.ptrace(PTRACE_ATTACH, os.getppid(), 0, 0) < 0:
            raise OSError(ctypes.get_errno(), "ptrace")

    def inet(self) -> str:
        socket.socket(socket.AF_INET, socket.SOCK_STREAM).close()
        return "made"

    def kill(self) -> str:
        os.kill(os.getppid(), signal.SIGCONT)
        return "sent"

    def open(self, name: str) -> str:
        os.close(os.open(name, os.O_RDONLY | os.O_CLOEXEC))
        return "opened"

    def rename(self, name: str, to: str) -> str:
        os.rename(name, to)
        return "renamed"

    def remove(self, name: str) -> str:
        os.unlink(name)
        return "removed"

    def late(self) -> str:
        """Import what nobody needs."""
        __import__("smtplib")
        return "imported"

    def fail(self) -> None:
        """An exception out of the device."""
        raise LookupError("told to fail")


def _parser() -> Parser:
    parser = Parser("vhu-probe", "A device that does as it is told.")
    add_socket(parser)
    add_rest(parser)
    return parser


if __name__ == "__main__":
    sys.exit(
        daemon(_parser, lambda _: contextlib.nullcontext(Probe()), program="vhu-probe", capabilities={}, argv=None),
    )
