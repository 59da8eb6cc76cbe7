"""What the command line of `vhu-fs` asks for, checked as a whole."""

from __future__ import annotations

import argparse
import contextlib
import logging
import os
from collections.abc import Callable
from dataclasses import dataclass
from typing import Final

from ..devices.fs.idmap import IdMap, parse_idmap
from ..devices.fs.options import Cache, Choice, ShareOptions
from ..devices.fs.xattrmap import XattrMap, XattrMapError, parse_xattrmap
from ..limited_log import printable
from ..sandbox.capabilities import MINIMAL, modified
from ..sandbox.confine import Mode, Plan
from ..sandbox.idmaps import Maps
from .arguments import Parser, one_of
from .fs_arguments import PROGRAM, parser
from .logs import level
from .outcome import STDERR, CommandError, Exit, complain

_SWITCHES: Final = (
    *("xattr", "readdirplus", "writeback", "allow_direct_io", "announce_submounts", "killpriv_v2"),
    *("posix_acl", "security_label"),
)
"""Words of -o that stand for a yes, and with no_ before them for a no."""
_CHOICES: Final = ("posix_acl", "security_label")
_VALUES: Final[dict[str, tuple[str, Callable[[str], object]]]] = {
    "source": ("shared_dir", str),
    "cache": ("cache", one_of(Cache, none="never")),
    "loglevel": ("log_level", level),
    "log_level": ("log_level", level),
    "sandbox": ("sandbox", one_of(Mode)),
    "modcaps": ("modcaps", modified),
    "xattrmap": ("xattrmap", str),
}
"""Words of -o that have a value."""
_IGNORED: Final = ("no_posix_lock", "no_flock")
_MIGRATION: Final = ("migration_mode", "migration_on_error", "migration_verify_handles", "migration_confirm_paths")


@dataclass(frozen=True, slots=True, kw_only=True)
class FsOptions:
    """What `vhu-fs` is to do."""

    shared_dir: str
    socket_path: str | None
    fd: int | None
    socket_group: str | None
    share: ShareOptions
    plan: Plan
    log_level: int
    syslog: bool
    once: bool
    stats: bool
    warnings: tuple[str, ...]
    """What the log should say of the command line."""


def parse_options(arguments: list[str]) -> FsOptions:
    """The options of a command line. Raises CommandError or SystemExit, exit code 2, if it is wrong."""
    made = parser()
    found = made.parse_args(arguments)
    warnings = _take_legacy(made, found)
    _refuse_missing(made, found)
    if found.shared_dir is None:
        raise CommandError("--shared-dir is not given", "try: --shared-dir DIR", Exit.USAGE)
    return FsOptions(
        shared_dir=found.shared_dir,
        socket_path=found.socket_path or found.socket,
        fd=found.fd,
        socket_group=found.socket_group,
        share=_share(made, found),
        plan=_plan(made, found),
        log_level=logging.DEBUG if found.debug else found.log_level,
        syslog=found.syslog,
        once=not found.reconnect,
        stats=found.stats,
        warnings=tuple(warnings),
    )


def _take_legacy(made: Parser, found: argparse.Namespace) -> list[str]:
    """Do what -o says, as if it were said by the options of today; what of it is to be logged."""
    for word in (word for words in found.legacy for word in words.split(",")):
        name, equals, value = word.partition("=")
        switch = name.removeprefix("no_")
        if equals and name in _VALUES:
            _set_value(made, found, name, value)
        elif not equals and switch in _SWITCHES:
            on: object = switch == name
            setattr(found, switch, (Choice.ALWAYS if on else Choice.NEVER) if switch in _CHOICES else on)
        elif equals or name not in _IGNORED:
            made.error(f"argument -o: there is no {word[:40]!a}; there are {', '.join([*_VALUES, *_SWITCHES])}")
    given = {"-o": found.legacy, "-d": found.debug, "-f": found.foreground, "--socket": found.socket}
    return [f"{name} is deprecated: use the long options" for name, value in given.items() if value]


def _set_value(made: Parser, found: argparse.Namespace, name: str, value: str) -> None:
    to, convert = _VALUES[name]
    try:
        setattr(found, to, convert(value))
    except (ValueError, argparse.ArgumentTypeError) as error:
        made.error(f"argument -o {name}: {error}")


def _refuse_missing(made: Parser, found: argparse.Namespace) -> None:
    """Say no to what virtiofsd has and this program has not."""
    if found.security_label is not Choice.NEVER:
        made.error("argument --security-label: labels are not set when files are made; leave it out")
    for name in _MIGRATION:
        if getattr(found, name):
            made.error(f"argument --{name.replace('_', '-')}: a guest can't be migrated with this device; leave it out")
    if found.socket_group is not None and not (found.socket_path or found.socket):
        made.error("argument --socket-group: only with --socket-path")


def _share(made: Parser, found: argparse.Namespace) -> ShareOptions:
    if found.posix_acl is not Choice.NEVER and (found.translate_uid or found.translate_gid):
        made.error("argument --posix-acl: not with --translate-uid or --translate-gid, for ACLs have ids in them")
    return ShareOptions(
        tag=found.tag or "",
        cache=found.cache,
        readonly=found.readonly,
        xattr=found.xattr or found.posix_acl is not Choice.NEVER,
        posix_acl=found.posix_acl,
        writeback=found.writeback,
        allow_direct_io=found.allow_direct_io,
        allow_mmap=found.allow_mmap,
        announce_submounts=found.announce_submounts,
        readdirplus=found.readdirplus and found.cache is not Cache.NEVER,
        killpriv_v2=found.killpriv_v2,
        preserve_noatime=found.preserve_noatime,
        inode_file_handles=found.inode_file_handles,
        thread_pool_size=found.thread_pool_size,
        num_request_queues=found.num_request_queues,
        dax=found.dax,
        dax_window=found.dax_window,
        dax_write=found.dax_write,
        dax_unsafe_peer=found.dax_unsafe_peer,
        xattrmap=None if found.xattrmap is None else _xattrmap(found.xattrmap),
        uids=_ids(made, "uid", found.translate_uid),
        gids=_ids(made, "gid", found.translate_gid),
    )


def _ids(made: Parser, what: str, rules: list[str]) -> IdMap:
    try:
        return parse_idmap(rules)
    except ValueError as error:
        made.error(f"argument --translate-{what}: {error}")


def _plan(made: Parser, found: argparse.Namespace) -> Plan:
    maps = Maps(tuple(found.uid_map), tuple(found.gid_map))
    if any(maps) and found.sandbox is not Mode.NAMESPACE:
        made.error("argument --uid-map, --gid-map: only with --sandbox namespace")
    return Plan(
        mode=found.sandbox,
        capabilities=MINIMAL if found.modcaps is None else found.modcaps,
        maps=maps,
        open_files=found.rlimit_nofile,
        seccomp=found.seccomp,
    )


def _xattrmap(text: str) -> XattrMap:
    """The map; SystemExit, exit code 2, if it is none, with the place in the rule underlined."""
    try:
        return parse_xattrmap(text)
    except XattrMapError as error:
        head = f'--xattrmap rule {error.number}: "'
        before, wrong = error.rule[: error.start], error.rule[error.start : error.start + error.width]
        complain(PROGRAM, f'{head}{error.rule}"')
        marks = " " * len(printable(f"{PROGRAM}: {head}{before}")) + "^" * max(1, len(printable(wrong)))
        with contextlib.suppress(OSError):
            os.write(STDERR, f"{marks} {printable(error.problem)}\n".encode(errors="backslashreplace"))
        raise SystemExit(Exit.USAGE) from None
