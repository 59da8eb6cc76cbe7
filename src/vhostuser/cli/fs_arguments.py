"""The command line of `vhu-fs`: virtiofsd's options, with the same names and defaults, and those of its window."""

from __future__ import annotations

import argparse
from typing import Final

from ..devices.fs.options import Cache, Choice, Dax, Handles
from ..protocol.numbers import MAX_QUEUES
from ..sandbox.capabilities import modified
from ..sandbox.confine import Mode
from ..sandbox.idmaps import parse_id_range
from ..version import VERSION
from .arguments import Parser, between, checked, number, one_of, size
from .daemon import ENDING, add_once, add_seccomp
from .logs import add_log_level
from .outcome import put

PROGRAM: Final = "vhu-fs"
LONGEST_TAG: Final = 36
SMALLEST_WINDOW: Final = 2 << 20
MOST_THREADS: Final = 1024
EPILOG: Final = f"""
All options of virtiofsd 1.14 are taken, but --security-label and the --migration options are refused.
The directory is the root of the process (--sandbox), Landlock keeps it beneath, it has few capabilities, and a system call
that it never needs ends it (--seccomp). Another process waits outside, hands signals on, and removes the socket in the end.
--dax-window has to hold what the guest reads again and again: in a smaller one ranges of 2 MiB come and go, which is slower
than no window at all, and a warning says so. Its memory is the host's, as far as the guest has mapped files so far.
{ENDING}"""


def parser() -> Parser:
    """What reads the command line."""
    text = "A vhost-user back-end that shares a directory with a guest, which can map its files (virtio-fs with DAX)."
    made = Parser(PROGRAM, text, epilog=EPILOG)
    for add in (_add_place, _add_share, _add_names, _add_sandbox, _add_window, _add_process, _add_legacy, _add_refused):
        add(made)
    return made


def _tag(text: str) -> str:
    if not 1 <= len(text.encode(errors="surrogateescape")) <= LONGEST_TAG:
        raise ValueError(f"a tag has 1 to {LONGEST_TAG} bytes")
    return text


def _window(text: str) -> int:
    found = size(text)
    if found < SMALLEST_WINDOW or found & (found - 1):
        raise ValueError(f"{text} is no power of two from 2M on")
    return found


def _add_place(made: Parser) -> None:
    made.add_argument("--shared-dir", metavar="DIR", help="the directory to share")
    where = made.add_mutually_exclusive_group()
    where.add_argument("--socket-path", metavar="PATH", help="listen on this Unix socket; PATH.pid is locked meanwhile")
    where.add_argument("--socket", metavar="PATH", help=argparse.SUPPRESS)
    where.add_argument(
        "--fd", type=between(0, 2**31 - 1), help="use this socket, listening or connected (default: systemd's)"
    )
    made.add_argument("--socket-group", metavar="GROUP", help="let this group connect, too")
    made.add_argument("--tag", type=checked(_tag), help="the tag that the device shows by itself")
    made.add_argument("--print-capabilities", action="store_true", help="print capabilities as JSON, and do nothing else")


def _add_share(made: Parser) -> None:
    made.add_argument("--cache", type=one_of(Cache), default=Cache.AUTO, metavar="auto|always|never|metadata")
    made.add_argument("--readonly", action="store_true", help="let the guest change nothing")
    made.add_argument("--writeback", action="store_true", help="let the guest keep what it writes in its cache")
    made.add_argument("--allow-direct-io", action="store_true", help="honour O_DIRECT of the guest's programs")
    made.add_argument("--allow-mmap", action="store_true", help="allow shared mappings with --cache never and metadata")
    made.add_argument("--no-readdirplus", dest="readdirplus", action="store_false", help="list names without attributes")
    submounts = made.add_mutually_exclusive_group()
    submounts.add_argument("--announce-submounts", action="store_true", default=True, help="show mount points (default)")
    submounts.add_argument("--no-announce-submounts", dest="announce_submounts", action="store_false")
    made.add_argument("--preserve-noatime", action="store_true", help="keep O_NOATIME of the guest's programs")
    made.add_argument("--killpriv-v2", action="store_true", help="clear set-user-ID bits for the guest")
    made.add_argument("--no-killpriv-v2", dest="killpriv_v2", action="store_false")
    handles = one_of(Handles, fallback="prefer")
    made.add_argument("--inode-file-handles", type=handles, default=Handles.PREFER, metavar="never|prefer|mandatory")
    pool = between(0, MOST_THREADS)
    made.add_argument("--thread-pool-size", type=pool, default=0, metavar="N", help="threads for requests (default 0: none)")
    queues = between(1, MAX_QUEUES - 1)
    made.add_argument("--num-request-queues", type=queues, default=1, metavar="N", help="queues for requests (default 1)")


def _add_names(made: Parser) -> None:
    made.add_argument("--xattr", action="store_true", help="allow extended attributes")
    made.add_argument("--xattrmap", metavar="RULES", help="rename them on the host, as :map::user.virtiofs.:")
    choice = one_of(Choice)
    made.add_argument(
        "--posix-acl", type=choice, nargs="?", const=Choice.ALWAYS, default=Choice.NEVER, metavar="never|auto|always"
    )
    rule = "TYPE:BASE:TARGET:COUNT"
    made.add_argument("--translate-uid", action="append", default=[], metavar=rule, help="other ids on the host; repeat")
    made.add_argument("--translate-gid", action="append", default=[], metavar=rule)


def _add_sandbox(made: Parser) -> None:
    made.add_argument("--sandbox", type=one_of(Mode), default=Mode.NAMESPACE, metavar="namespace|chroot|none")
    add_seccomp(made)
    made.add_argument("--modcaps", type=checked(modified), metavar="+CAP:-CAP", help="keep others")
    ids = checked(parse_id_range)
    made.add_argument("--uid-map", type=ids, action="append", default=[], metavar=":INSIDE:OUTSIDE:COUNT:")
    made.add_argument("--gid-map", type=ids, action="append", default=[], metavar=":INSIDE:OUTSIDE:COUNT:")
    files = checked(number)
    made.add_argument("--rlimit-nofile", type=files, metavar="N", help="open files (default 1000000; 0 leaves the limit)")


def _add_window(made: Parser) -> None:
    made.add_argument("--dax", type=one_of(Dax), default=Dax.COPY, metavar="copy|direct|off", help="default copy")
    made.add_argument("--dax-window", type=checked(_window), default=512 << 20, metavar="SIZE", help="default 512M")
    made.add_argument("--dax-write", action="store_true", help="write back what the guest writes to mapped files")
    made.add_argument("--dax-unsafe-peer", action="store_true", help="map files into QEMU versions that crash of it")


def _add_process(made: Parser) -> None:
    made.add_argument("--stats", action="store_true", help="log in the end how many requests of each kind there were")
    made.add_argument("--syslog", action="store_true", help="log to syslog instead of standard error")
    add_log_level(made)
    add_once(made)
    made.add_argument("-V", "--version", action=_Version, nargs=0, help="print the version, and do nothing else")


def _add_legacy(made: Parser) -> None:
    made.add_argument("-o", dest="legacy", action="append", default=[], metavar="OPTIONS", help="those of old; deprecated")
    made.add_argument("-d", dest="debug", action="store_true", help=argparse.SUPPRESS)
    made.add_argument("-f", dest="foreground", action="store_true", help=argparse.SUPPRESS)


def _add_refused(made: Parser) -> None:
    choice = one_of(Choice)
    made.add_argument(
        "--security-label", type=choice, nargs="?", const=Choice.ALWAYS, default=Choice.NEVER, help=argparse.SUPPRESS
    )
    for name in ("--migration-mode", "--migration-on-error"):
        made.add_argument(name, help=argparse.SUPPRESS)
    for name in ("--migration-verify-handles", "--migration-confirm-paths"):
        made.add_argument(name, action="store_true", help=argparse.SUPPRESS)


class _Version(argparse.Action):
    """Prints the version and ends."""

    def __call__(self, parser: argparse.ArgumentParser, *unused: object) -> None:
        put(f"{PROGRAM} {VERSION}")
        parser.exit(0)
