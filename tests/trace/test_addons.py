"""`-s ADDON.py`: functions by name see what passes, may change it, and can't harm the session."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from textwrap import dedent

import pytest

from vhostuser.protocol.numbers import BackendRequest, FrontendRequest
from vhostuser.protocol.payloads import U64, Mmap, VringState
from vhostuser.testing import memory_file, message
from vhostuser.trace.addons import Addon, AddonError

from .between import Between
from .test_proxy_messages import MAP, NUM, opened, took

Q, B = FrontendRequest, BackendRequest
FEATURES = message(Q.GET_FEATURES)
ANSWER = message(Q.GET_FEATURES, U64(1 << 30), flags=5)


def written(folder: Path, text: str) -> Path:
    path = folder / "addon.py"
    path.write_text(dedent(text))
    return path


@contextmanager
def with_addon(folder: Path, text: str) -> Iterator[tuple[Between, list[str]]]:
    said: list[str] = []
    with Between(alter=Addon(written(folder, text), said.append)) as between:
        yield between, said


def test_functions_see_their_requests_and_replies(tmp_path: Path) -> None:
    seen = tmp_path / "seen"
    text = f"""
        def say(*words):
            with open({str(seen)!r}, "a") as file:
                print(*words, file=file)

        def message(message):
            say("all", message.name, message.sender.value, message.channel.value, message.is_reply)

        def set_vring_num(message):
            say("num", message.values, len(message.fds))

        def get_features_reply(message):
            say("reply", message.values["value"])
        """
    with with_addon(tmp_path, text) as (between, said):
        between.front.send(NUM + FEATURES)
        assert [took(between.back)[0] for _ in range(2)] == [NUM, FEATURES]
        between.back.send(ANSWER)
        assert took(between.front) == (ANSWER, [])
    assert seen.read_text().splitlines() == [
        "all SET_VRING_NUM front-end front-end False",
        "num {'index': 0, 'num': 64} 0",
        "all GET_FEATURES front-end front-end False",
        "all GET_FEATURES back-end front-end True",
        f"reply {1 << 30}",
    ]
    assert said == []


def test_what_a_function_returns_goes_on(tmp_path: Path) -> None:
    text = """
        def set_vring_num(message):
            return message.changed(num=message.values["num"] * 2)

        def get_features_reply(message):
            return message.changed(value=message.values["value"] | 1)

        def set_owner(message):
            return message.message.data + b"more"
        """
    with with_addon(tmp_path, text) as (between, _):
        between.front.send(NUM + FEATURES + message(Q.SET_OWNER))
        assert took(between.back)[0] == message(Q.SET_VRING_NUM, VringState(0, 128), flags=9)
        took(between.back)
        assert between.back.socket.recv(100) == message(Q.SET_OWNER) + b"more"
        between.back.send(ANSWER)
        assert took(between.front)[0] == message(Q.GET_FEATURES, U64(1 << 30 | 1), flags=5)
        between.settle()
        assert [told.note for told in between.messages] == [
            "changed by set_vring_num: num 64 to 128",
            "",
            "changed by set_owner: 12 bytes to 16",
            f"changed by get_features_reply: value {1 << 30} to {1 << 30 | 1}",
        ]


def test_verdicts(tmp_path: Path) -> None:
    text = """
        def shmem_map(message):
            return message.refused(12)

        def set_vring_num(message):
            return message.dropped()

        def set_owner(message):
            return message.delayed(0.001)

        def reset_owner(message):
            return message.closed()
        """
    with with_addon(tmp_path, text) as (between, _), memory_file() as file:
        ours, theirs = opened(between)
        with ours, theirs:
            theirs.send(MAP, [file])
            assert took(theirs) == (message(B.SHMEM_MAP, U64(12), flags=5), [])
        between.front.send(NUM + message(Q.SET_OWNER) + message(Q.RESET_OWNER))
        assert took(between.back) == (message(Q.SET_OWNER), [])
        between.back.closes()
        between.front.closes()


@pytest.mark.parametrize(
    ("body", "words"),
    [
        ("return 1 / 0", "ZeroDivisionError in set_vring_num: division by zero"),
        ("return message.values['nun']", "KeyError in set_vring_num: 'nun'"),
        ("return 7", "TypeError in set_vring_num: returned int; it may return"),
        ("return message.changed(nun=1)", "ValueError in set_vring_num: SET_VRING_NUM has no number 'nun'"),
        ("return message.refused('x')", "TypeError in set_vring_num: refused: status is 'x', and no whole number"),
        ("return message.refused(1.5)", "TypeError in set_vring_num: refused: status is 1.5, and no whole number"),
        (
            "return message.refused(1 << 64)",
            "ValueError in set_vring_num: refused: status is 18446744073709551616, and not b",
        ),
        ("return message.refused(-1)", "ValueError in set_vring_num: refused: status is -1, and not between 0 and"),
        ("return message.delayed('1s')", "TypeError in set_vring_num: delayed: seconds is '1s', and no number"),
        ("return message.delayed(-1)", "ValueError in set_vring_num: delayed: seconds is -1, and not between 0 and 3600"),
        ("return message.delayed(float('nan'))", "ValueError in set_vring_num: delayed: seconds is nan, and not between"),
        ("return message.changed(num='x')", "TypeError in set_vring_num: changed: num is 'x', and no whole number"),
        ("raise SystemExit(3)", "SystemExit in set_vring_num: 3"),
    ],
)
def test_a_fault_of_an_addon_is_said_once_with_its_line_and_changes_nothing(tmp_path: Path, body: str, words: str) -> None:
    with with_addon(tmp_path, f"def set_vring_num(message):\n    {body}\n") as (between, said):
        between.front.send(NUM * 3)
        assert [took(between.back)[0] for _ in range(3)] == [NUM] * 3
    (line,) = said
    assert words in line
    own = 1 if "returned" in words else 2
    assert line.startswith(str(tmp_path / f"addon.py:{own}: "))


def test_the_line_of_an_addon_that_is_named_by_where_it_is_from_here(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    said: list[str] = []
    written(tmp_path, "def set_vring_num(message):\n    return message.refused('x')\n")
    monkeypatch.chdir(tmp_path)
    with Between(alter=Addon("addon.py", said.append)) as between:
        between.front.send(NUM)
        assert took(between.back)[0] == NUM
    (line,) = said
    assert line.startswith("addon.py:2: TypeError in set_vring_num: refused: status is 'x'")


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("def f(:\n", "addon.py:1: "),
        ("\nimport no_such_module_at_all\n", "addon.py:2: ModuleNotFoundError: No module named"),
        ("x = 1\n", "addon.py has no function that is named after a request, nor `message`"),
        ("raise SystemExit\n", "addon.py:1: SystemExit"),
    ],
)
def test_an_addon_that_can_not_be_loaded_says_where(tmp_path: Path, text: str, words: str) -> None:
    with pytest.raises(AddonError) as caught:
        Addon(written(tmp_path, text), print)
    assert words in str(caught.value)


@pytest.mark.parametrize("name", ["nothing.py", "nothing"])
def test_an_addon_that_is_not_there(tmp_path: Path, name: str) -> None:
    with pytest.raises(AddonError, match=r"No such file|no Python file"):
        Addon(tmp_path / name, print)


def test_a_map_that_is_changed_keeps_its_fd(tmp_path: Path) -> None:
    with with_addon(tmp_path, "def shmem_map(message):\n    return message.changed(len=8192)\n") as (between, _):
        ours, theirs = opened(between)
        with ours, theirs, memory_file() as file:
            theirs.send(MAP, [file])
            data, fds = took(ours)
            assert (Mmap.unpack(data[12:]).len, len(fds)) == (8192, 1)
