"""`vhu-rng`: random bytes for whoever connects."""

from __future__ import annotations

import json
import signal
from pathlib import Path

import pytest

from vhostuser import Frontend

from .programs import RNG, listening, one_line, run, serving


@pytest.mark.parametrize("others", [(), ("--unknown", "--fd", "x")])
def test_print_capabilities_ignores_all_else(others: tuple[str, ...]) -> None:
    done = run(RNG, *others, "--print-capabilities")
    assert (done.returncode, done.stderr) == (0, "")
    assert json.loads(done.stdout) == {"type": "rng"}


@pytest.mark.parametrize(
    ("arguments", "text"),
    [
        ([], "neither --socket-path nor --fd is given; try: --socket-path /tmp/rng.sock"),
        (["--blk-file", "x"], "unrecognized arguments"),
        (["--socket-pth", "x"], "did you mean --socket-path?"),
    ],
)
def test_what_is_wrong_is_one_line(arguments: list[str], text: str) -> None:
    done = run(RNG, *arguments)
    assert done.returncode == 2
    assert text in one_line(done.stderr)
    assert done.stderr.startswith("vhu-rng: ")


def test_a_front_end_gets_random_bytes(sock: Path) -> None:
    with serving(sock, module=RNG) as back:
        with Frontend.connect(sock) as front:
            front.share_memory(1 << 20)
            queue = front.start_queue(0, size=16)
            assert len({queue.exchange(b"", 32) for _ in range(10)}) == 10
        assert back.end() == 0


def test_p07_a_signal_ends_it(sock: Path) -> None:
    with listening(sock, module=RNG) as back:
        back.signal(signal.SIGTERM)
        assert back.end() == 0
    assert not sock.exists()


def test_help_names_the_exit_codes() -> None:
    done = run(RNG, "--help")
    assert done.returncode == 0
    assert "exit status: 0" in done.stdout
