"""F41: what a process in the sandbox of `vhu-fs` can still do, asked of one."""

from __future__ import annotations

import errno
import json
import os
import signal
import socket
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from vhostuser import Frontend, Queue
from vhostuser.cli.fs import main
from vhostuser.sandbox import landlock
from vhostuser.sandbox.capabilities import MINIMAL, mask, modified
from vhostuser.testing import DEADLINE, is_listened_on

from .programs import SECONDS, Program, listening, one_line, until

FS = "tests.cli.fs_stand_in"
NOBODY = 65534
OUT_OF_REACH = {"ENOENT", "EACCES"}


def refusal(*command: str) -> str:
    """Why this machine does not let a command run, or nothing."""
    try:
        made = subprocess.run(command, capture_output=True, check=False, timeout=SECONDS)
    except OSError as error:
        return str(error)
    return made.stderr.decode().strip()


root_only = pytest.mark.skipif(os.geteuid() != 0, reason="needs root")
NO_NAMESPACES = refusal("unshare", "--mount", "--pid", "--net", "--ipc", "--fork", "true")
namespaces = pytest.mark.skipif(bool(NO_NAMESPACES), reason=f"no namespaces here: {NO_NAMESPACES}")
NO_USERS = refusal("setpriv", f"--reuid={NOBODY}", "--clear-groups", "unshare", "--user", "true")
users = pytest.mark.skipif(bool(NO_USERS), reason=f"no user namespaces here, or no root to leave: {NO_USERS}")
needs_landlock = pytest.mark.skipif(not landlock.version(), reason="this kernel has no Landlock")

MODES = [
    pytest.param("namespace", marks=[root_only, namespaces]),
    pytest.param("chroot", marks=root_only),
    pytest.param("none", marks=needs_landlock),
]
every = pytest.mark.parametrize("mode", MODES)


class Probe:
    """Asks the process in the sandbox."""

    def __init__(self, queue: Queue) -> None:
        self._queue = queue

    def ask(self, verb: str, *arguments: object) -> Any:
        answer = self._queue.exchange(json.dumps([verb, *arguments]).encode(), 1024, timeout=DEADLINE)
        return json.loads(answer)


@pytest.fixture
def shared(place: Path) -> Path:
    """A directory to share; anybody may write to it."""
    folder = place / "shared"
    (folder / "sub").mkdir(parents=True)
    (folder / "file").write_text("of the host")
    (folder / "file").chmod(0o666)
    (folder / "out").symlink_to("/etc/passwd")
    for path in (place, folder, folder / "sub"):
        path.chmod(0o777)
    return folder


@contextmanager
def asking(sock: Path) -> Iterator[Probe]:
    with Frontend.connect(sock, wait=SECONDS) as front:
        front.share_memory(1 << 20)
        yield Probe(front.start_queue(0, size=16))


@every
def test_files_of_the_directory_are_there(sock: Path, shared: Path, mode: str) -> None:
    with listening(sock, "--shared-dir", shared, "--sandbox", mode, module=FS) as back, asking(sock) as probe:
        assert probe.ask("read", "file") == "of the host"
        assert probe.ask("write", "new", "of the guest", 0o666) == 12
        assert probe.ask("move", "new", "sub/new") is None
        assert (shared / "sub" / "new").read_text() == "of the guest"
        assert (shared / "sub" / "new").stat().st_mode & 0o777 == 0o666
        assert back.process.poll() is None


OUTSIDE = [
    *[("/etc/passwd", ""), ("/proc/self/environ", ""), ("out", "root"), ("../environ", "fds")],
    *[("../" * 20 + "etc/passwd", "root"), ("../" * 20 + "etc/passwd", "fds")],
]


@every
def test_f41_nothing_outside_can_be_opened(sock: Path, shared: Path, mode: str) -> None:
    with listening(sock, "--shared-dir", shared, "--sandbox", mode, module=FS), asking(sock) as probe:
        answers = {(name, where): probe.ask("open", name, where) for name, where in OUTSIDE}
        assert set(answers.values()) <= OUT_OF_REACH, answers


@every
def test_f41_it_has_few_capabilities_and_gets_no_more(sock: Path, shared: Path, mode: str) -> None:
    options = ("--shared-dir", shared, "--sandbox", mode, "--modcaps=-mknod:+sys_chroot", "--rlimit-nofile", "512")
    with listening(sock, *options, module=FS), asking(sock) as probe:
        state = probe.ask("state")
        assert state["capabilities"] & ~modified("-mknod:+sys_chroot") == 0
        if os.geteuid() == 0:
            assert state["capabilities"] == MINIMAL & ~mask("mknod") | mask("sys_chroot")
            works = not landlock.version() or (mode == "namespace" and landlock.takes_handles())
            assert state["handles"] == ("prefer" if works else "never")
        assert (state["no_new_privs"], state["umask"], state["files"]) == (1, 0, 512)


@root_only
@namespaces
def test_f41_a_namespace_has_one_process_no_network_and_no_devices(sock: Path, shared: Path) -> None:
    with listening(sock, "--shared-dir", shared, module=FS), asking(sock) as probe:
        state = probe.ask("state")
        assert state["pid"] == 1
        assert state["interfaces"] == ["lo"]
        assert probe.ask("device", "null") == "EACCES"


@needs_landlock
def test_f41_no_program_is_run(sock: Path, shared: Path) -> None:
    tool = shared / "true"
    tool.write_bytes(Path("/bin/true").read_bytes())
    tool.chmod(0o755)
    with listening(sock, "--shared-dir", shared, "--sandbox", "none", module=FS), asking(sock) as probe:
        assert probe.ask("run", str(tool)) == "ENOEXEC"
        assert probe.ask("open", str(tool), "") == "opened"


@pytest.mark.skipif(landlock.version() < 6, reason="needs Landlock's scopes (Linux 6.12)")
def test_f41_no_socket_of_the_host_is_reached_by_its_name(sock: Path, shared: Path) -> None:
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as host:
        host.bind(b"")
        host.listen()
        name = host.getsockname()[1:].decode()
        with listening(sock, "--shared-dir", shared, "--sandbox", "none", module=FS), asking(sock) as probe:
            assert probe.ask("connect", name) == "EPERM"


@every
def test_f41_errors_of_all_kinds_import_nothing(sock: Path, shared: Path, mode: str) -> None:
    """What the guest may have put where the interpreter's files were is never run, nor quoted in a traceback."""
    for module in sys.modules["os"], sys.modules["threading"]:
        decoy = shared / str(module.__file__).lstrip("/")
        decoy.parent.mkdir(parents=True, exist_ok=True)
        decoy.write_text("of the guest\n" * 5000)
    (shared / "smtplib.py").write_text("raise SystemExit")
    debug = ("--log-level", "debug")
    with listening(sock, "--shared-dir", shared, "--sandbox", mode, *debug, module=FS) as back, asking(sock) as probe:
        assert probe.ask("errors") == [
            "decode: UnicodeDecodeError",
            "encode: UnicodeError",
            "lookup: LookupError",
            "host: gaierror",
            "json: JSONDecodeError",
            "thread: nothing",
            "resource: nothing",
            "deep: RecursionError",
            "import: ImportError",
        ]
        assert "KeyError: 'NOTHING'" in back.said
        assert "of the guest" not in back.said
        assert "cannot import" not in back.said


@every
@pytest.mark.parametrize("seccomp", ["kill", "none"])
def test_f41_threads_that_are_left_at_the_end_load_no_library(sock: Path, shared: Path, mode: str, seccomp: str) -> None:
    """The C library has to end them, and would look for what it needs among the files of the guest."""
    for folder in ("lib", "lib64", "usr/lib", "lib/x86_64-linux-gnu", "usr/lib/x86_64-linux-gnu"):
        (shared / folder).mkdir(parents=True, exist_ok=True)
        (shared / folder / "libgcc_s.so.1").write_bytes(b"of the guest")
    options = ("--shared-dir", shared, "--sandbox", mode, "--seccomp", seccomp)
    with listening(sock, *options, module=FS) as back:
        with asking(sock) as probe:
            assert probe.ask("linger") == "lingering"
        assert back.end() == 0
        assert "killed" not in back.said


@users
@namespaces
def test_without_root_it_is_a_user_namespace(sock: Path, shared: Path) -> None:
    with _as_nobody(sock, shared) as back, asking(sock) as probe:
        state = probe.ask("state")
        assert (state["ids"], state["pid"]) == ([NOBODY, NOBODY], 1)
        assert state["handles"] == "never"
        assert probe.ask("read", "file") == "of the host"
        assert probe.ask("write", "new", "x", 0o600) == 1
        assert (shared / "new").stat().st_uid == NOBODY
        assert probe.ask("open", "/etc/passwd", "") in OUT_OF_REACH
        assert "file handles are switched off" in back.said
        back.signal(signal.SIGTERM)
        assert back.end() == 0
    assert not sock.exists()


def _as_nobody(sock: Path, shared: Path, *options: str) -> Program:
    command = [sys.executable, "-W", "error", "-m", FS, "--as", str(NOBODY), "--socket-path", str(sock)]
    program = Program([*command, "--shared-dir", str(shared), *options])
    until(lambda: is_listened_on(sock) or program.process.poll() is not None, "it listens")
    return program


@root_only
@namespaces
def test_ids_are_mapped_into_the_namespace(sock: Path, shared: Path) -> None:
    maps = ("--uid-map", ":0:100000:65536:", "--gid-map", "/0/200000/65536/")
    with listening(sock, "--shared-dir", shared, *maps, module=FS) as back, asking(sock) as probe:
        assert probe.ask("state")["ids"] == [0, 0]
        assert probe.ask("write", "new", "x", 0o600) == 1
        made = (shared / "new").stat()
        assert (made.st_uid, made.st_gid) == (100000, 200000)
        back.signal(signal.SIGTERM)
        assert back.end() == 0
    assert not sock.exists()


@users
@namespaces
@pytest.mark.parametrize("inside", [0, 5])
def test_without_root_its_one_id_is_another_in_the_namespace(sock: Path, shared: Path, inside: int) -> None:
    own = f":{inside}:{NOBODY}:1:"
    with _as_nobody(sock, shared, "--uid-map", own, "--gid-map", own) as back, asking(sock) as probe:
        assert probe.ask("state")["ids"] == [inside, inside]
        assert probe.ask("write", "new", "x", 0o600) == 1
        made = (shared / "new").stat()
        assert (made.st_uid, made.st_gid) == (NOBODY, NOBODY)
        back.signal(signal.SIGTERM)
        assert back.end() == 0


@root_only
@namespaces
@pytest.mark.parametrize("maps", [["--uid-map"], ["--gid-map"], ["--uid-map", "--gid-map"]])
def test_root_alone_is_mapped_into_the_namespace(sock: Path, shared: Path, maps: list[str]) -> None:
    options = [word for each in maps for word in (each, ":0:0:1:")]
    with listening(sock, "--shared-dir", shared, *options, module=FS) as back, asking(sock) as probe:
        assert probe.ask("state")["ids"] == [0, 0]
        assert probe.ask("write", "new", "x", 0o600) == 1
        assert (shared / "new").stat().st_uid == 0
        back.signal(signal.SIGTERM)
        assert back.end() == 0


@root_only
@namespaces
def test_root_alone_leaves_the_groups_of_the_host(sock: Path, shared: Path) -> None:
    before = os.getgroups()
    os.setgroups([*before, 6])
    try:
        with listening(sock, "--shared-dir", shared, "--gid-map", ":0:0:1:", module=FS), asking(sock) as probe:
            assert probe.ask("state")["groups"] == []
    finally:
        os.setgroups(before)


@users
def test_what_fails_is_named_with_something_to_try(sock: Path, shared: Path) -> None:
    command = [sys.executable, "-m", FS, "--as", str(NOBODY), "--socket-path", str(sock), "--shared-dir", str(shared)]
    done = subprocess.run([*command, "--sandbox", "chroot"], capture_output=True, text=True, timeout=SECONDS, check=False)
    assert done.returncode == 1
    said = done.stderr.splitlines()[-1]
    assert "cannot chroot into the shared directory: Operation not permitted (EPERM); try: --sandbox namespace" in said
    assert not sock.exists()
    assert not Path(f"{sock}.pid").exists()


def test_a_limit_that_is_too_high_is_said(sock: Path, shared: Path) -> None:
    options = ("--shared-dir", shared, "--sandbox", "none", "--rlimit-nofile", str(1 << 31))
    with listening(sock, *options, module=FS) as back, asking(sock):
        assert "cannot set the limit of open files to 2147483648: the hard limit" in back.said


def test_f40_a_share_that_is_deleted_is_an_errno(sock: Path, place: Path) -> None:
    gone = place / "gone"
    gone.mkdir()
    with listening(sock, "--shared-dir", gone, "--sandbox", "none", module=FS), asking(sock) as probe:
        gone.rmdir()
        assert probe.ask("read", "file") == errno.errorcode[errno.ENOENT]


@pytest.mark.parametrize(
    ("name", "why"),
    [
        ("missing", "No such file or directory (ENOENT)"),
        ("shared/file", "it is no directory but a file"),
        ("link", "it is a symbolic link; try: --shared-dir"),
        ("x" * 300, "File name too long (ENAMETOOLONG)"),
    ],
)
def test_f40_what_is_no_directory_is_not_shared(
    capfd: pytest.CaptureFixture[str], sock: Path, place: Path, shared: Path, name: str, why: str
) -> None:
    (place / "link").symlink_to(shared)
    assert main(["--shared-dir", str(place / name), "--socket-path", str(sock)]) == 1
    assert why in one_line(capfd.readouterr().err)
    assert not sock.exists()
