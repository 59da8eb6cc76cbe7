"""docs/vhu-fs.md, and the examples that it ships: systemd's units and libvirt's XML do what they say."""

from __future__ import annotations

import re
import shlex
import shutil
import socket
import subprocess
import sys
from pathlib import Path

import pytest

from vhostuser import Frontend
from vhostuser.cli.fs_arguments import parser
from vhostuser.drivers.fs import FsDriver
from vhostuser.drivers.fuse import FuseSession

from .programs import SECONDS, VHU, Program, run, words

TOP = Path(__file__).resolve().parents[2]
EXAMPLES = TOP / "docs/examples"
PAGE = (TOP / "docs/vhu-fs.md").read_text()
SERVICE = (EXAMPLES / "vhu-fs@.service").read_text()
ACTIVATED = "import os, sys; os.dup2(int(sys.argv[1]), 3); os.environ |= dict(LISTEN_PID=str(os.getpid()), LISTEN_FDS='1')"
"""What systemd does with the socket of a service."""
HIDDEN = {"--security-label", "--migration-", "--socket"}
OTHERS = {"--now", "--path", "--share"}
"""Options of other programs."""


def test_every_option_of_the_page_is_one() -> None:
    """The page names all that differ from virtiofsd, too."""
    known = set(parser().format_help().replace(",", " ").split()) | HIDDEN
    named = set(re.findall(r"--[a-z][a-z-]*", PAGE))
    assert {name for name in named if f"[{name}" not in known and name not in known} <= OTHERS
    assert named >= {
        "--dax",
        "--dax-window",
        "--dax-write",
        "--dax-unsafe-peer",
        "--stats",
        "--seccomp",
        "--tag",
        "--reconnect",
    }


def test_the_links_of_the_page_lead_somewhere() -> None:
    links = re.findall(r"\]\(([^)]+)\)", PAGE)
    assert len(links) >= 4
    assert all((TOP / "docs" / link).exists() for link in links)


def test_libvirts_xml_is_what_vhu_vm_xml_prints() -> None:
    assert (EXAMPLES / "vhu-fs.xml").read_text() == run(VHU, "vm", "xml", "--share", "/run/vhu-fs/srv-photos.sock").stdout


def test_the_service_serves_the_socket_that_systemd_gives_it(place: Path) -> None:
    """Its very command line, but for the sandbox, which a test's machine may refuse."""
    (shared := place / "photos").mkdir()
    (shared / "file").write_text("of the host")
    (command,) = re.findall(r"^ExecStart=(.*)$", SERVICE, re.MULTILINE)
    (options,) = re.findall(r"^Environment=OPTIONS=(.*)$", SERVICE, re.MULTILINE)
    program, *rest = shlex.split(command.replace("%f", str(shared)).replace("%i", "srv-photos").replace("$OPTIONS", options))
    assert program == "/usr/bin/vhu-fs"
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(str(place / "s"))
        listener.listen(1)
        fd = listener.fileno()
        script = f"{ACTIVATED}; os.execv(sys.argv[2], sys.argv[2:])"
        arguments = [sys.executable, "-c", script, str(fd), *words("vhostuser.cli.fs", *rest, "--sandbox", "none")]
        back = Program(arguments, pass_fds=[fd, 3])
    with back:
        with Frontend.connect(place / "s", wait=SECONDS) as front:
            assert front.config(0, 11) == b"srv-photos\0"
            front.share_memory(4 << 20)
            share = FsDriver(FuseSession(front))
            assert [entry.name for entry in share.listdir()] == ["file"]
            with pytest.raises(OSError, match="Read-only file system"):
                share.mkdir("new")
        assert back.end() == 0, back.said


@pytest.mark.skipif(not shutil.which("systemd-analyze"), reason="systemd-analyze is not installed")
def test_systemd_understands_the_units(place: Path) -> None:
    (program := place / "vhu-fs").write_text("#!/bin/sh\n")
    program.chmod(0o755)
    for kind in ("service", "socket"):
        text = (EXAMPLES / f"vhu-fs@.{kind}").read_text().replace("/usr/bin/vhu-fs", str(program))
        (place / f"vhu-fs@tmp.{kind}").write_text(text)
    units = [str(place / f"vhu-fs@tmp.{kind}") for kind in ("socket", "service")]
    done = subprocess.run(
        ["systemd-analyze", "verify", "--man=no", *units], capture_output=True, text=True, timeout=SECONDS, check=False
    )
    assert "vhu-fs" not in done.stderr, done.stderr
