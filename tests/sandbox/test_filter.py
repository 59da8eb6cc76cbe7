"""The filter of system calls in the kernel: what is forbidden has the action, and all that a share does is allowed."""

from __future__ import annotations

import errno
import json
import os
import re
import subprocess
import sys
from functools import cache
from pathlib import Path

import pytest

from vhostuser.sandbox.seccomp import Action
from vhostuser.sandbox.system import machine

from .forbidden import FOR_FILES_ONLY, FORBIDDEN, REFUSED

TOP = Path(__file__).resolve().parents[2]
SECONDS = 240.0
"""A deadline: a busy machine takes its time."""
ANSWERED = ("blk_connected", "blk_native", "console", "pmem")
ON_THE_WIRE = ("dirty_log", "inband", "inflight", "memory_slots")
FRONT_ENDS = 120
SUITES = ("files", "directories", "nodes", "tree", "xattrs")
REQUESTS = 900

pytestmark = [
    pytest.mark.skipif(machine() != "x86_64", reason="the calls that are made are those of x86_64"),
    pytest.mark.timeout(SECONDS),
]


def ran(*words: str, **changes: str) -> str:
    """What Python prints, which ends well; `changes` are of its environment."""
    command = [sys.executable, "-W", "error", *words]
    environment = os.environ | changes
    done = subprocess.run(command, capture_output=True, text=True, timeout=SECONDS, check=False, cwd=TOP, env=environment)
    assert done.returncode == 0, done.stderr + done.stdout[-4000:]
    return done.stdout


@cache
def outcomes(action: Action, policy: str = "files") -> dict[str, int | str]:
    """What came of each call: its errno, 0 for none, or the name of a signal."""
    found: dict[str, int | str] = json.loads(ran("-m", "tests.sandbox.forbidden", action.value, policy))
    return found


@pytest.mark.parametrize("action", [Action.KILL, Action.TRAP])
def test_f41_forbidden_calls_end_the_process(action: Action) -> None:
    found = outcomes(action)
    assert {name: found[name] for name in (*FORBIDDEN, "x32")} == dict.fromkeys((*FORBIDDEN, "x32"), "SIGSYS")
    assert "SIGSYS" not in {found[name] for name in FOR_FILES_ONLY}


@pytest.mark.parametrize("action", [Action.KILL, Action.TRAP])
def test_a_device_may_not_call_what_is_for_files(action: Action) -> None:
    found, names = outcomes(action, "device"), (*FORBIDDEN, *FOR_FILES_ONLY, "x32")
    assert {name: found[name] for name in names} == dict.fromkeys(names, "SIGSYS")
    assert found["openat"] == errno.EACCES


@pytest.mark.parametrize("action", [Action.KILL, Action.TRAP])
def test_the_keeper_may_call_even_less(action: Action) -> None:
    found, removes = outcomes(action, "keeper"), {"unlinkat"}
    names = {*FORBIDDEN, *FOR_FILES_ONLY, *REFUSED, "x32"} - removes - {"clone3"}
    assert {name: found[name] for name in names} == dict.fromkeys(names, "SIGSYS")
    assert found["openat"] == errno.EACCES


@pytest.mark.parametrize("policy", ["files", "device"])
def test_f41_forbidden_calls_are_made_where_they_are_only_logged(policy: str) -> None:
    free, logged = outcomes(Action.NONE), outcomes(Action.LOG, policy)
    names = (*FORBIDDEN, *FOR_FILES_ONLY)
    assert {name: logged[name] for name in names} == {name: free[name] for name in names}
    assert "SIGSYS" not in free.values()


@pytest.mark.parametrize("action", [Action.KILL, Action.LOG, Action.TRAP])
@pytest.mark.parametrize("policy", ["files", "device"])
def test_f41_what_others_do_without_is_refused_in_all_modes(action: Action, policy: str) -> None:
    found = outcomes(action, policy)
    assert {name: found[name] for name in (*REFUSED, "newer")} == {
        "clone3": 38,
        "ioctl": 25,
        "prctl": 22,
        "fcntl": 22,
        "setsockopt": 92,
        "newer": 38,
    }


THREADS = """
import os, socket, sys, threading
from vhostuser.sandbox.allowed import for_files
from vhostuser.sandbox.seccomp import Action, program
from vhostuser.sandbox.system import filter_calls, machine, prctl
go = threading.Event()
def work():
    go.wait()
    socket.socket()
other = threading.Thread(target=work)
other.start()
prctl(38, 1)
filter_calls(program(for_files(os.getpid(), handles=False, syslog=None), Action.KILL, machine()))
print("filtered", flush=True)
go.set()
other.join()
print("not reached")
"""


def test_threads_that_are_there_have_the_filter_too() -> None:
    done = subprocess.run([sys.executable, "-c", THREADS], capture_output=True, text=True, timeout=SECONDS, check=False)
    assert (done.stdout, done.returncode) == ("filtered\n", -31), done.stderr


LIVES = """
import ctypes, gc, logging, mmap, os, random, select, signal, sys, tempfile, threading, time, warnings
from tests.sandbox.policies import POLICIES
from vhostuser.sandbox.filtering import filter_process
from vhostuser.sandbox.seccomp import Action
filter_process(POLICIES[sys.argv[1]](os.getpid()), Action.KILL)
threads = [threading.Thread(target=time.sleep, args=(0.01,)) for _ in range(8)]
for each in threads: each.start()
for each in threads: each.join()
large = [bytearray(1 << 20) for _ in range(64)]
large[0] += bytes(32 << 20)
del large
gc.collect()
shared = mmap.mmap(-1, 1 << 20)
shared[0] = 1
shared.resize(2 << 20)
shared.close()
signal.signal(signal.SIGALRM, lambda *_: None)
signal.raise_signal(signal.SIGALRM)
select.select([0], [], [], 0), select.poll().poll(0), select.epoll().poll(0)
random.seed(), os.urandom(8), os.cpu_count(), os.sched_getaffinity(0), os.uname(), os.isatty(0), os.getloadavg
threading.Condition().acquire(), threading.Event().wait(0.01), os.set_inheritable(0, False), os.set_blocking(0, True)
os.getpid(), os.getuid(), os.times, time.localtime(), time.process_time(), time.clock_getres(time.CLOCK_MONOTONIC)
logging.getLogger().error("said")
def deep(): deep()
try: deep()
except RecursionError: print("lived")
"""


@pytest.mark.parametrize("policy", ["files", "device"])
def test_the_interpreter_lives_with_it_and_ends(policy: str) -> None:
    assert ran("-c", LIVES, policy) == "lived\n"


def test_all_that_a_share_does_is_allowed() -> None:
    suites = [f"tests/devices/fs/test_{name}.py" for name in SUITES]
    said = ran("-m", "pytest", "-q", "-n", "0", "-p", "no:cacheprovider", "-p", "tests.sandbox.filtered", *suites)
    counted = re.search(r"(\d+) requests behind the filter", said)
    assert counted
    assert int(counted[1]) > REQUESTS


@pytest.mark.parametrize("pure", ["", "1"], ids=["compiled", "pure"])
def test_all_that_a_device_does_is_allowed(pure: str) -> None:
    """Disks, images and consoles, and what any device may meet: logs, areas of memory, calls in-band."""
    suites = [f"tests/devices/test_{name}.py" for name in ANSWERED] + [f"tests/wire/test_{name}.py" for name in ON_THE_WIRE]
    words = ("-m", "pytest", "-q", "-n", "0", "-p", "no:cacheprovider", "-p", "tests.sandbox.filtered_back_ends")
    counted = re.search(r"(\d+) front-ends were served behind the filter", ran(*words, *suites, VHOSTUSER_PURE=pure))
    assert counted
    assert int(counted[1]) > FRONT_ENDS
