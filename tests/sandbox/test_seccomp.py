"""The filter of system calls as a program: what it says of each call, on both machines, without a kernel."""

from __future__ import annotations

import errno
import mmap
import stat

import pytest

from vhostuser.sandbox.allowed import for_device, for_files, for_keeper
from vhostuser.sandbox.seccomp import (
    ALLOW,
    ARCHITECTURES,
    ERRNO,
    INSTRUCTION,
    RETURNED,
    X32,
    Action,
    Policy,
    program,
)
from vhostuser.sandbox.syscalls import LAST, MACHINES, NUMBERS, number_of

from .machine import numbers, verdict
from .policies import CHILD, EVERY, SYSLOG

PID = 4711
POLICY = for_files(PID, handles=False, syslog=None)
MOST_INSTRUCTIONS = 4096
"""BPF_MAXINSNS"""
CLONE_OF_GLIBC, CLONE_OF_MUSL = 0x3D0F00, 0x7D0F00
"""What pthread_create asks for."""
both = pytest.mark.parametrize("machine", MACHINES)


def said(name: str | int, *arguments: int, machine: str = "x86_64", policy: Policy = POLICY) -> int:
    """What the filter of `kill` returns for a call."""
    made = program(policy, Action.KILL, machine)
    number = number_of(name, machine) if isinstance(name, str) else name
    assert made is not None
    assert number is not None
    return verdict(made, ARCHITECTURES[machine], number, arguments)


@both
def test_the_numbers_are_the_kernels(machine: str) -> None:
    """A header may be older than the list."""
    known = numbers(machine)
    newer = {name: found for name in NUMBERS if name not in known and (found := number_of(name, machine)) is not None}
    assert {name: number_of(name, machine) for name in NUMBERS} == {name: known.get(name) for name in NUMBERS} | newer
    assert all(found > max(known.values()) for found in newer.values())
    assert len(known) > 250


def test_no_name_is_without_use() -> None:
    policies = [made(PID) for made in EVERY.values()]
    assert {name for each in policies for name in spoken_of(each)} | {"seccomp"} == set(NUMBERS)


def spoken_of(policy: Policy) -> set[str]:
    """The calls that a policy does not leave to the action."""
    return {*policy.allowed, *policy.given, *policy.refused}


@pytest.mark.parametrize("name", EVERY)
def test_a_name_is_in_one_place_only(name: str) -> None:
    policy = EVERY[name](PID)
    assert len(spoken_of(policy)) == len(policy.allowed) + len(policy.given) + len(policy.refused)


@both
@pytest.mark.parametrize("action", [Action.KILL, Action.LOG, Action.TRAP])
@pytest.mark.parametrize("name", EVERY)
def test_every_other_number_gets_the_action(machine: str, action: Action, name: str) -> None:
    """All there are, and some of which there is none."""
    policy = EVERY[name](PID)
    made = program(policy, action, machine)
    assert made is not None
    assert len(made) <= MOST_INSTRUCTIONS * INSTRUCTION.size
    others = set(range(LAST + 1)) - {number_of(each, machine) for each in spoken_of(policy)}
    assert {verdict(made, ARCHITECTURES[machine], number) for number in others} == {RETURNED[action]}
    assert len(others) > 300


@both
def test_what_is_needed_is_allowed_whatever_its_arguments(machine: str) -> None:
    there = [name for name in POLICY.allowed if number_of(name, machine) is not None]
    wild = [(1 << 64) - 1] * 6
    assert {said(name, *wild, machine=machine) for name in there} == {ALLOW}
    assert len(there) > 90


@both
def test_what_is_newer_is_not_there(machine: str) -> None:
    """So the C library, which knows of it, does without."""
    assert {said(number, machine=machine) for number in (LAST + 1, LAST + 100, 0xFFFF)} == {ERRNO | errno.ENOSYS}
    assert said("clone3", machine=machine) == ERRNO | errno.ENOSYS


def test_calls_of_x32_are_forbidden() -> None:
    assert {said(number | X32) for number in (0, 1, 39, 512, 547)} == {RETURNED[Action.KILL]}
    assert said(0xFFFF_FFFF) == RETURNED[Action.KILL]


@both
def test_calls_of_another_machine_are_forbidden(machine: str) -> None:
    """What is `getpid` here is another call there, as `int 0x80` on x86_64."""
    made = program(POLICY, Action.KILL, machine)
    assert made is not None
    others = [0x4000_0003, 0x4000_0028, *(each for name, each in ARCHITECTURES.items() if name != machine)]
    assert {verdict(made, other, number) for other in others for number in range(500)} == {RETURNED[Action.KILL]}


@pytest.mark.parametrize("machine", ["riscv64", "ppc64le", "i686", ""])
def test_of_other_machines_there_is_no_filter(machine: str) -> None:
    assert program(POLICY, Action.KILL, machine) is None


def test_none_is_no_filter() -> None:
    assert program(POLICY, Action.NONE, "x86_64") is None


KILLED = RETURNED[Action.KILL]
UPPER = 0xDEAD_BEEF << 32
"""What the kernel does not look at in an `int`."""


@both
@pytest.mark.parametrize(
    ("name", "arguments", "returned"),
    [
        ("clone", (CLONE_OF_GLIBC,), ALLOW),
        ("clone", (CLONE_OF_MUSL,), ALLOW),
        ("clone", (17,), KILLED),  # fork
        ("clone", (0x4111,), KILLED),  # vfork
        ("clone", (CLONE_OF_GLIBC | 0x1000_0000,), KILLED),  # CLONE_NEWUSER
        ("clone", (CLONE_OF_GLIBC | 0x4000_0000,), KILLED),  # CLONE_NEWNET
        ("unshare", (0x200,), ALLOW),
        ("unshare", (0x200 | 0x1000_0000,), KILLED),
        ("unshare", (0,), KILLED),
        ("mmap", (0, 4096, mmap.PROT_READ | mmap.PROT_WRITE), ALLOW),
        ("mmap", (0, 4096, mmap.PROT_READ | mmap.PROT_EXEC), KILLED),
        ("mprotect", (0, 4096, mmap.PROT_READ), ALLOW),
        ("mprotect", (0, 4096, UPPER | mmap.PROT_EXEC), KILLED),
        ("mknodat", (3, 0, stat.S_IFREG | 0o644), ALLOW),
        ("mknodat", (3, 0, stat.S_IFIFO | 0o644), ALLOW),
        ("mknodat", (3, 0, stat.S_IFSOCK | 0o7777), ALLOW),
        ("mknodat", (3, 0, stat.S_IFCHR | 0o644), KILLED),
        ("mknodat", (3, 0, stat.S_IFBLK | 0o644), KILLED),
        ("ioctl", (0, 0x5421), ALLOW),  # FIONBIO
        ("ioctl", (0, 0x5412), ERRNO | errno.ENOTTY),  # TIOCSTI
        ("ioctl", (0, 0x4004_9409), ERRNO | errno.ENOTTY),  # FICLONE
        ("prctl", (15,), ALLOW),  # PR_SET_NAME
        ("prctl", (4, 1), ERRNO | errno.EINVAL),  # PR_SET_DUMPABLE
        ("tgkill", (PID, 12, 31), ALLOW),
        ("tgkill", (1, 1, 9), KILLED),
        ("process_vm_readv", (UPPER | PID,), ALLOW),
        ("process_vm_readv", (1,), KILLED),
        ("process_vm_writev", (PID + 1,), KILLED),
        ("prlimit64", (0,), ALLOW),
        ("prlimit64", (1,), KILLED),
    ],
)
def test_arguments_are_looked_at(machine: str, name: str, arguments: tuple[int, ...], returned: int) -> None:
    assert said(name, *arguments, machine=machine) == returned


def test_handles_are_for_who_opens_files_by_them() -> None:
    with_them = for_files(PID, handles=True, syslog=False)
    assert said("open_by_handle_at", policy=with_them) == ALLOW
    assert said("open_by_handle_at") == said("name_to_handle_at") == KILLED


WITH_SYSLOG = for_files(PID, handles=False, syslog=SYSLOG)
F_DUPFD, F_GETFD = 0, 1


@both
@pytest.mark.parametrize(
    ("name", "others"),
    [
        *(("sendmsg", ALLOW), ("sendmmsg", ALLOW), ("dup", ALLOW), ("dup2", ALLOW), ("dup3", ALLOW)),
        ("fcntl", ERRNO | errno.EINVAL),
    ],
)
def test_by_syslogs_socket_nothing_is_sent_to_others(machine: str, name: str, others: int) -> None:
    """`sendmsg` has an address in memory, where no filter looks; and the socket gets no other number."""
    if number_of(name, machine) is not None:
        for fd, returned in ((SYSLOG, ERRNO | errno.EPERM), (UPPER | SYSLOG, ERRNO | errno.EPERM), (SYSLOG + 1, others)):
            assert said(name, fd, 1 << 20, machine=machine, policy=WITH_SYSLOG) == returned
    for fd in (SYSLOG, SYSLOG + 1):
        assert said("fcntl", fd, F_GETFD, policy=WITH_SYSLOG) == (ALLOW if fd != SYSLOG else ERRNO | errno.EPERM)
        assert said("fcntl", fd, F_DUPFD, policy=WITH_SYSLOG) == (ALLOW if fd != SYSLOG else ERRNO | errno.EPERM)
        assert said("write", fd, policy=WITH_SYSLOG) == ALLOW


@both
@pytest.mark.parametrize("name", EVERY)
def test_nothing_is_sent_to_an_address(machine: str, name: str) -> None:
    policy = EVERY[name](PID)
    assert said("sendto", SYSLOG, 1, 2, 3, 0, UPPER, machine=machine, policy=policy) == ALLOW
    assert said("sendto", SYSLOG, 1, 2, 3, 4, 110, machine=machine, policy=policy) == KILLED


DEVICE = for_device(PID, removes=False, terminal=False)
TCSETS, TIOCSTI = 0x5402, 0x5412
AT_FDCWD = 0xFFFF_FF9C


@both
def test_a_device_opens_nothing_and_acts_for_nobody(machine: str) -> None:
    """To open something is an errno, for a C library looks for what it can do without."""
    assert said("openat", AT_FDCWD, 1, 0, machine=machine, policy=DEVICE) == ERRNO | errno.EACCES
    for name in (
        "openat2",
        "unlinkat",
        "renameat2",
        "mkdirat",
        "mknodat",
        "unshare",
        "setresuid",
        "capset",
        "kill",
        "wait4",
    ):
        assert said(name, machine=machine, policy=DEVICE) == KILLED, name


@both
def test_a_device_removes_a_name_only_if_it_has_one(machine: str) -> None:
    with_it = for_device(PID, removes=True, terminal=False)
    assert [said("unlinkat", machine=machine, policy=each) for each in (DEVICE, with_it)] == [KILLED, ALLOW]


@both
def test_a_terminal_is_given_back_and_not_typed_into(machine: str) -> None:
    with_it = for_device(PID, removes=False, terminal=True)
    refused = ERRNO | errno.ENOTTY
    assert [said("ioctl", 0, TCSETS, machine=machine, policy=each) for each in (DEVICE, with_it)] == [refused, ALLOW]
    assert [said("ioctl", 0, TIOCSTI, machine=machine, policy=each) for each in (DEVICE, with_it)] == [refused, refused]


@both
def test_the_keeper_signals_its_child_alone_and_waits(machine: str) -> None:
    keeper = for_keeper(PID, CHILD)
    assert said("kill", CHILD, 15, machine=machine, policy=keeper) == ALLOW
    for other in (0, 1, -1 & 0xFFFF_FFFF, PID, CHILD + 1):
        assert said("kill", other, 9, machine=machine, policy=keeper) == KILLED
    assert {said(name, machine=machine, policy=keeper) for name in ("wait4", "unlinkat", "write")} == {ALLOW}
    for name in ("read", "recvmsg", "sendmsg", "accept4", "socket", "clone", "process_vm_readv", "ftruncate", "setresuid"):
        assert said(known_number(name, machine), machine=machine, policy=keeper) == KILLED, name


def known_number(name: str, machine: str) -> int:
    """The number that the kernel's header gives."""
    return numbers(machine)[name]


def test_most_are_found_out_without_their_arguments() -> None:
    """The kernel remembers which numbers are always allowed, if nothing else is looked at before that is known."""
    made = program(POLICY, Action.KILL, "x86_64")
    assert made is not None
    code = list(INSTRUCTION.iter_unpack(made))
    first = next(at for at, (operation, _, _, value) in enumerate(code) if operation == 0x20 and value >= 16)
    assert sum(value == ALLOW for _, _, _, value in code[:first]) == len(POLICY.allowed)


DANGEROUS = (
    *("execve", "execveat", "fork", "vfork", "ptrace", "kill", "tkill", "pidfd_open", "pidfd_getfd", "process_madvise"),
    *("mount", "umount2", "pivot_root", "chroot", "open_tree", "move_mount", "fsopen", "fsmount", "mount_setattr", "setns"),
    *("socket", "socketpair", "connect", "bind", "listen", "bpf", "userfaultfd", "io_uring_setup", "io_uring_enter"),
    *("init_module", "finit_module", "delete_module", "kexec_load", "reboot", "swapon", "iopl", "ioperm", "modify_ldt"),
    *("keyctl", "add_key", "request_key", "perf_event_open", "open_by_handle_at", "name_to_handle_at", "mknod"),
    *("personality", "seccomp", "settimeofday", "clock_settime", "sethostname", "quotactl", "syslog", "acct"),
    *("memfd_secret", "pkey_mprotect", "remap_file_pages", "shmat", "msgget", "fanotify_init", "inotify_init1"),
)


@both
@pytest.mark.parametrize("name", DANGEROUS)
def test_what_is_dangerous_is_forbidden(machine: str, name: str) -> None:
    known = numbers(machine)
    for policy in (POLICY, WITH_SYSLOG, DEVICE, for_device(PID, removes=True, terminal=True), for_keeper(PID, CHILD)):
        assert said(known.get(name, LAST), machine=machine, policy=policy) == KILLED
    assert name in known or machine == "aarch64"
