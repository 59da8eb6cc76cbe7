"""tshark captures live, by the program that `vhu wireshark install --extcap` puts into its folder."""

from __future__ import annotations

import os
import socket
import subprocess
from pathlib import Path

import pytest

from tests.trace.shark import Shark, shark_tank
from vhostuser.testing import Wire, is_listened_on
from vhostuser.transport.listen import connect

from .programs import SECONDS, VHU, one_line, run, until
from .test_vhu_trace import ANSWER, ASK, Q

EXTCAP = ("wireshark", "extcap", "--extcap-version=4.4")


def test_what_wireshark_asks_is_answered() -> None:
    done = run(VHU, *EXTCAP, "--extcap-interfaces")
    assert done.stdout.splitlines()[1] == "interface {value=vhost-user}{display=vhost-user connection}"
    about = ("--extcap-interface", "vhost-user")
    assert run(VHU, *EXTCAP, "--extcap-dlts", *about).stdout.startswith("dlt {number=252}{name=WIRESHARK_UPPER_PDU}")
    config = run(VHU, *EXTCAP, "--extcap-config", *about).stdout.splitlines()
    assert [line.split("{call=")[1].split("}")[0] for line in config] == ["--listen", "--connect", "--queues"]


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        ([], "Wireshark runs this; try: vhu wireshark install --extcap"),
        (["--capture", "--fifo", "f", "--listen", "a"], "--connect is missing"),
    ],
)
def test_what_can_not_be_is_said(arguments: list[str], says: str) -> None:
    done = run(VHU, *EXTCAP, *arguments)
    assert (done.returncode, done.stdout) == (2, "")
    assert says in one_line(done.stderr)


def test_tshark_sees_a_session_while_it_goes_on(place: Path) -> None:
    with shark_tank() as shark, socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as listener:
        place.chmod(0o777)
        listener.bind(str(place / "b"))
        listener.listen(1)
        listener.settimeout(SECONDS)
        os.chmod(place / "b", 0o777)
        done = run(VHU, "wireshark", "install", "--extcap", HOME=str(shark.home))
        assert (done.returncode, done.stderr) == (0, "")
        assert done.stdout.splitlines()[2] == str(shark.home / ".local/lib/wireshark/extcap/vhu-extcap")
        with capturing(shark, place) as process:
            until(lambda: is_listened_on(place / "a") or process.poll() is not None, "it listens", 3 * SECONDS)
            assert process.poll() is None, process.communicate()
            with Wire(connect(place / "a")) as front, Wire(listener.accept()[0]) as back:
                front.send(ASK)
                assert back.receive().request == Q.GET_FEATURES
                back.send(ANSWER)
                assert front.receive().request == Q.GET_FEATURES
                shown, said = process.communicate(timeout=3 * SECONDS)
        until(lambda: not (place / "a").exists(), "the tracer has ended, too")
    assert [line.split(" ", 1)[0] for line in shown.splitlines()] == ["opened:", "GET_FEATURES", "GET_FEATURES"], said
    assert process.returncode == 0


def capturing(shark: Shark, place: Path) -> subprocess.Popen[str]:
    """A tshark at its interface, until it has seen three packets."""
    ends = [f"extcap.vhost_user.listen:{place}/a", f"extcap.vhost_user.connect:{place}/b"]
    options = [word for end in ends for word in ("-o", end)]
    return shark.start("-i", "vhost-user", *options, "-c", "3", "-l", "-T", "fields", "-e", "_ws.col.info")
