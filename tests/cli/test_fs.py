"""`vhu-fs` as a process: how it starts, listens and ends, with a device that stands in."""

from __future__ import annotations

import grp
import json
import os
import signal
import socket
import stat
from pathlib import Path

import pytest

from vhostuser import Frontend
from vhostuser.cli.fs import main
from vhostuser.version import VERSION

from .programs import SECONDS, Program, listening, one_line, run, serving, until, words
from .test_fs_sandbox import FS, Probe, asking, namespaces, root_only

NONE = ("--sandbox", "none")


@pytest.fixture
def shared(place: Path) -> Path:
    folder = place / "shared"
    folder.mkdir()
    (folder / "file").write_text("of the host")
    return folder


def children(pid: int) -> list[int]:
    """The processes that a process has started."""
    return [int(pid) for pid in Path(f"/proc/{pid}/task/{pid}/children").read_text().split()]


def state_of(pid: int, field: str) -> str:
    """A field of a process's status."""
    lines = Path(f"/proc/{pid}/status").read_text().splitlines()
    return next(line.split(":", 1)[1].strip() for line in lines if line.startswith(f"{field}:"))


@root_only
@namespaces
def test_libvirts_exact_command_line_starts_and_serves(sock: Path, shared: Path) -> None:
    """As libvirt 11 writes it: an fd that listens, separate options, id maps for a guest's users."""
    shared.parent.chmod(0o777)
    options = (
        "--shared-dir",
        str(shared),
        "--cache",
        "always",
        "--sandbox",
        "namespace",
        "--xattr",
        "--thread-pool-size=16",
    )
    rest = ("--rlimit-nofile=5000", "--log-level", "debug", "--uid-map=:0:100000:65535:", "--gid-map=:0:100000:65535:")
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as listener:
        listener.bind(str(sock))
        listener.listen(1)
        fd = listener.fileno()
        back = Program(words(FS, f"--fd={fd}", *options, *rest), pass_fds=[fd])
    with back:
        with asking(sock) as probe:
            assert probe.ask("read", "file") == "of the host"
        assert back.end() == 0


def test_print_capabilities_ignores_all_else(capfd: pytest.CaptureFixture[str]) -> None:
    assert main(["--print-capabilities", "--no-such-option"]) == 0
    assert json.loads(capfd.readouterr().out) == {"type": "fs", "features": ["separate-options"]}


@pytest.mark.parametrize(("option", "text"), [("--help", "--dax-window SIZE"), ("-V", f"vhu-fs {VERSION}")])
def test_help_and_version(capfd: pytest.CaptureFixture[str], option: str, text: str) -> None:
    with pytest.raises(SystemExit) as ended:
        main([option])
    assert not ended.value.code
    assert text in capfd.readouterr().out


def test_the_log_has_virtiofsds_lines(sock: Path, shared: Path) -> None:
    with listening(sock, "--shared-dir", shared, *NONE, "--stats", module=FS) as back:
        with asking(sock) as probe:
            probe.ask("read", "file")
        assert back.end() == 0
        said = [line.partition(" INFO  vhu-fs] ")[2] for line in back.said.splitlines()]
        waiting = said.index("Waiting for vhost-user socket connection...")
        connected = said.index("Client connected, servicing requests")
        assert waiting < connected < said.index("Client disconnected, shutting down")
        assert json.loads(said[-1])["messages"] > 0


def test_the_socket_is_of_one_user_and_nothing_is_left(sock: Path, shared: Path) -> None:
    lock = Path(f"{sock}.pid")
    with listening(sock, "--shared-dir", shared, *NONE, module=FS) as back:
        assert stat.S_IMODE(sock.stat().st_mode) == 0o600
        assert int(lock.read_text()) == back.process.pid
        back.signal(signal.SIGTERM)
        assert back.end() == 0
    assert not sock.exists()
    assert not lock.exists()


@root_only
def test_a_group_may_connect(sock: Path, shared: Path) -> None:
    group = next(each for each in grp.getgrall() if each.gr_gid != os.getgid())
    with listening(sock, "--shared-dir", shared, *NONE, "--socket-group", group.gr_name, module=FS):
        assert (sock.stat().st_gid, stat.S_IMODE(sock.stat().st_mode)) == (group.gr_gid, 0o660)


def test_a_group_that_is_none_is_refused(sock: Path, shared: Path) -> None:
    done = run(FS, "--shared-dir", shared, "--socket-path", sock, "--socket-group", "no such group")
    assert (done.returncode, sock.exists()) == (2, False)
    assert "there is no such group" in one_line(done.stderr)


def test_a_second_instance_is_refused_and_the_first_one_stays(sock: Path, shared: Path) -> None:
    with listening(sock, "--shared-dir", shared, *NONE, module=FS) as back:
        done = run(FS, "--shared-dir", shared, "--socket-path", sock, *NONE)
        assert done.returncode == 1
        assert f"{sock} is in use by pid {back.process.pid}" in one_line(done.stderr)
        with asking(sock) as probe:
            assert probe.ask("read", "file") == "of the host"


def test_what_was_left_by_one_that_was_killed_is_taken_over(sock: Path, shared: Path) -> None:
    with listening(sock, "--shared-dir", shared, *NONE, module=FS) as back:
        until(lambda: children(back.process.pid), "it is two processes")
        (child,) = children(back.process.pid)
        back.signal(signal.SIGKILL)
        until(lambda: not Path(f"/proc/{child}").exists() or state_of(child, "State")[0] == "Z", "the child dies with it")
    assert sock.exists()
    with listening(sock, "--shared-dir", shared, *NONE, module=FS), asking(sock) as probe:
        assert probe.ask("read", "file") == "of the host"


@pytest.mark.parametrize("kind", ["file", "link"])
def test_p11_what_is_no_lock_file_is_left_alone(sock: Path, shared: Path, kind: str) -> None:
    lock, other = Path(f"{sock}.pid"), shared / "file"
    lock.mkdir() if kind == "file" else lock.symlink_to(other)
    done = run(FS, "--shared-dir", shared, "--socket-path", sock, *NONE)
    assert (done.returncode, other.read_text()) == (1, "of the host")
    assert "cannot open" in one_line(done.stderr)
    assert lock.is_dir() or lock.is_symlink()


@pytest.mark.parametrize(
    ("mode", "number"),
    [
        ("none", signal.SIGTERM),
        pytest.param("namespace", signal.SIGTERM, marks=[root_only, namespaces]),
        pytest.param("namespace", signal.SIGHUP, marks=[root_only, namespaces]),
    ],
)
def test_p07_a_signal_to_the_process_outside_ends_both(sock: Path, shared: Path, mode: str, number: signal.Signals) -> None:
    with listening(sock, "--shared-dir", shared, "--sandbox", mode, module=FS) as back, asking(sock) as probe:
        probe.ask("read", "file")
        back.signal(number)
        assert back.end() == 0
    assert not sock.exists()
    assert not Path(f"{sock}.pid").exists()


@root_only
@namespaces
def test_p07_a_signal_at_any_time_of_the_start_leaves_nothing(sock: Path, shared: Path) -> None:
    """Process 1 of a namespace never gets a signal that it has no handler for: it must wait until there is one."""
    lock = Path(f"{sock}.pid")
    with Program(words(FS, "--socket-path", sock, "--shared-dir", shared)) as back:
        until(lock.exists, "it has begun")
        back.signal(signal.SIGTERM)
        assert back.end() == 0
    assert not sock.exists()
    assert not lock.exists()


@root_only
def test_the_process_outside_keeps_two_capabilities_and_no_fd_of_the_connection(sock: Path, shared: Path) -> None:
    with listening(sock, "--shared-dir", shared, "--sandbox", "chroot", module=FS) as back, asking(sock):
        assert int(state_of(back.process.pid, "CapEff"), 16) == 0x22
        assert state_of(back.process.pid, "NoNewPrivs") == "1"
        fds = Path(f"/proc/{back.process.pid}/fd")
        assert not [each for each in fds.iterdir() if os.readlink(each).startswith("socket:")]


def test_the_end_of_the_process_inside_is_the_end_of_both(sock: Path, shared: Path) -> None:
    with listening(sock, "--shared-dir", shared, *NONE, module=FS) as back, asking(sock) as probe:
        probe.ask("read", "file")
        (child,) = children(back.process.pid)
        os.kill(child, signal.SIGKILL)
        assert back.end() == 128 + signal.SIGKILL
        assert "the process in the sandbox was killed by SIGKILL" in back.said
    assert not sock.exists()


def test_reconnect_serves_one_after_the_other(sock: Path, shared: Path) -> None:
    with listening(sock, "--shared-dir", shared, *NONE, "--reconnect", module=FS) as back:
        for _ in range(2):
            with asking(sock) as probe:
                assert probe.ask("read", "file") == "of the host"
        back.signal(signal.SIGTERM)
        assert back.end() == 0


def test_a_connected_fd_is_served(shared: Path) -> None:
    ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_STREAM)
    with theirs:
        back = Program(words(FS, "--fd", str(theirs.fileno()), "--shared-dir", shared, *NONE), pass_fds=[theirs.fileno()])
    with back:
        with Frontend(ours) as front:
            front.share_memory(1 << 20)
            assert Probe(front.start_queue(0, size=16)).ask("read", "file") == "of the host"
        assert back.end() == 0


def test_a_device_that_fails_is_logged_without_a_late_import(sock: Path, shared: Path) -> None:
    with serving(sock, "--shared-dir", shared, *NONE, module=FS) as back:
        with asking(sock) as probe:
            with pytest.raises(ValueError, match="Expecting value"):
                probe.ask("fail")
            assert probe.ask("read", "file") == "of the host"
        assert back.process.wait(SECONDS) == 0
        assert "LookupError: told to fail" in back.said
        assert "cannot import" not in back.said


def test_neither_a_socket_nor_an_fd_is_a_usage_error(shared: Path) -> None:
    done = run(FS, "--shared-dir", shared)
    assert done.returncode == 2
    assert "neither --socket-path nor --fd is given" in one_line(done.stderr)
