"""`vhu check back-end`: exit codes, and what it tells in each form."""

from __future__ import annotations

import json
from pathlib import Path
from xml.etree import ElementTree

import pytest

from vhostuser.conformance.back_end import all_rules  # noqa: F401  # the rules
from vhostuser.conformance.backend_bench import BACK_END
from vhostuser.conformance.profiles import BACK_END_PROFILES
from vhostuser.device import Device
from vhostuser.testing import listening
from vhostuser.trace.capture import open_capture
from vhostuser.virtio.chain import DescriptorChain

from .programs import VHU, run

BROKEN = "regions_can_be_reserved"


class TooMuch(Device):
    """Has a region that nobody can reserve: one rule, an advice, is not kept."""

    queue_sizes = (64,)
    shared_memory = {0: 1 << 46}  # noqa: RUF012

    def process(self, queue: int, chain: DescriptorChain) -> None:
        chain.write(chain.read()[: chain.writable_size])


class Small(TooMuch):
    """The same with a region of a page."""

    shared_memory = {0: 4096}  # noqa: RUF012


def check(*words: str) -> tuple[int, str, str]:
    done = run(VHU, "check", "back-end", *words)
    return done.returncode, done.stdout, done.stderr


def test_all_is_kept() -> None:
    with listening(Small()) as (path, _):
        code, said, _ = check(path, "--section", "header", "--device", "echo")
    assert code == 0
    assert "not kept" not in said


def test_a_device_of_ones_own_is_told_by_a_request_that_it_answers() -> None:
    with listening(Small()) as (path, _):
        code, said, _ = check(path, "--device", "0:70696e67:4", "--rule", "^requests_(come|may_be)", "-v")
    assert code == 0
    assert said.count("kept    MUST") == 4, said


@pytest.mark.parametrize("words", ["teapot", "0:7:4", "256:00:1", "0::0", "0:00:16385", "0:00:1:", f"0:{'00' * 16385}:1"])
def test_a_request_that_is_none_is_told(words: str) -> None:
    code, _, said = check("/nowhere", "--device", words)
    assert code == 2
    assert "argument --device: " in said
    assert said.count("\n") == 1


def test_the_sum_says_what_was_skipped_for_want_of_the_kind_of_device() -> None:
    chosen = (
        "--rule",
        "^a_broken_ring_leaves_the_connection$",
        "--rule",
        "^the_device_can_be_owned",
        "--rule",
        "^regions_can",
    )
    with listening(Small()) as (path, _):
        assert check(path, *chosen)[1].splitlines()[-1] == "3 rules: 2 kept, 1 skipped (1 of them for want of --device)"
        assert check(path, *chosen, "--device", "echo")[1].splitlines()[-1] == "3 rules: 3 kept"
        assert (
            check(path, "--rule", "^a_broken_ring_leaves_the_connection$")[1]
            == "1 rule: 1 skipped (1 of them for want of --device)\n"
        )
        assert check(path, "--rule", "^regions_can")[1] == "1 rule: 1 kept\n"


def test_what_is_not_kept_is_told_by_section(tmp_path: Path) -> None:
    report, captures = tmp_path / "report.xml", tmp_path / "captures"
    with listening(TooMuch()) as (path, _):
        code, said, _ = check(
            path, "--section", "shmem_config", "--profile", "strict", "--junit", str(report), "--captures", str(captures)
        )
    assert code == 0  # an advice is no must
    assert said.startswith("VHOST_USER_GET_SHMEM_CONFIG\n  broken  advice regions_can_be_reserved\n    rule ")
    assert "GET_SHMEM_CONFIG" in said
    cases = ElementTree.parse(report).getroot()
    assert {case.get("name") for case in cases} >= {BROKEN}
    assert any(open_capture(captures / f"{BROKEN}.pcapng"))


def test_json_is_an_object_a_rule() -> None:
    with listening(TooMuch()) as (path, _):
        code, said, _ = check(path, "--json", "--rule", f"^{BROKEN}$")
    (found,) = [json.loads(line) for line in said.splitlines()]
    assert (code, found["result"], found["level"]) == (0, "broken", "advice")


def test_a_profile_that_is_better_than_told_fails() -> None:
    with listening(Small()) as (path, _):
        code, said, _ = check(path, "--profile", "libvhost-user", "--rule", "need_reply_means")
    assert code == 1
    assert "fixed" in said


def test_rules_are_listed() -> None:
    code, said, _ = check("--list")
    assert (code, len(said.splitlines())) == (0, len(list(BACK_END)))


def listed(*words: str) -> set[str]:
    code, said, _ = check("--list", *words)
    assert code == 0
    return set(said.splitlines())


def test_sections_and_patterns_may_be_repeated_and_choose_more() -> None:
    header, shmem = listed("--section", "header"), listed("--section", "shmem_config")
    both = ("--section", "header", "--section", "shmem_config")
    assert header
    assert shmem
    assert not header & shmem
    assert listed(*both) == header | shmem
    names = ("regions_can", "the_device_can_be_owned")
    named = listed("--rule", names[0]) | listed("--rule", names[1])
    assert len(named) >= 2
    assert listed("--rule", names[0], "--rule", names[1]) == named
    assert listed(*both, "--rule", names[0], "--rule", names[1]) == (header | shmem) & named


@pytest.mark.parametrize("words", [["--section", "header", "--section", "Mars"], ["--rule", "can", "--rule", "Mars"]])
def test_each_of_them_has_to_choose_something(words: list[str]) -> None:
    code, said, complaint = check("--list", *words)
    assert (code, said) == (2, "")
    assert "Mars" in complaint


def test_the_list_for_programs_says_all_of_a_rule() -> None:
    code, said, _ = check("--list", "--json", "--rule", "^a_base_of_more")
    (entry,) = [json.loads(line) for line in said.splitlines()]
    assert code == 0
    assert {key: entry[key] for key in ("rule", "side", "section", "level", "needs", "expects")} == {
        "rule": "a_base_of_more_than_sixteen_bits_is_refused",
        "side": "back-end",
        "section": "VHOST_USER_SET_VRING_BASE",
        "level": "advice",
        "needs": ["REPLY_ACK"],
        "expects": "SET_VRING_BASE refused",
    }
    assert entry["url"].endswith("vhost-user.html#front-end-message-types")
    assert entry["sends"][-1] == "SET_VRING_BASE (need_reply)"


@pytest.mark.parametrize(
    ("words", "code"),
    [([], 2), (["/x", "--rule", "("], 2), (["/x", "--rule", "no such rule"], 2), (["/nowhere/s", "--timeout", "0.1"], 3)],
)
def test_the_exit_status_says_what_was_wrong(words: list[str], code: int) -> None:
    got, said, complaint = check(*words)
    assert (got, said) == (code, "")
    assert complaint.startswith("vhu check")


def test_profiles_name_rules() -> None:
    names = {rule.name for rule in BACK_END}
    for profile in BACK_END_PROFILES.values():
        assert set(profile) <= names
        assert all(profile.values())


@pytest.mark.parametrize("option", ["--junit", "--captures"])
def test_what_can_not_be_written_is_told_before_anything_is_checked(tmp_path: Path, option: str) -> None:
    (tmp_path / "file").touch()
    code, said, error = check(str(tmp_path / "nobody"), option, str(tmp_path / "file" / "report"))
    assert (code, said) == (2, "")
    assert "can't be written" in error
