"""`vhu explain`: every name, number and bit of the protocol, and raw bytes."""

from __future__ import annotations

import json
from typing import Any

import pytest

from vhostuser.cli.explain import meanings_of
from vhostuser.protocol.dialects import DIALECTS
from vhostuser.protocol.numbers import ProtocolFeature
from vhostuser.protocol.payloads import U64, CrosvmMap, Mmap
from vhostuser.protocol.rules import RULES
from vhostuser.testing.files import message

from .programs import VHU, one_line, run

ALL = [rule for rules in RULES.values() for rule in rules.values()]


def asked(*query: str) -> list[dict[str, Any]]:
    done = run(VHU, "explain", "--json", *query)
    assert (done.returncode, done.stderr) == (0, "")
    found: list[dict[str, Any]] = json.loads(done.stdout)["meanings"]
    return found


@pytest.mark.parametrize("rule", ALL, ids=lambda rule: f"{rule.channel.value}-{rule.name}")
def test_every_request_by_name_and_number(rule: Any) -> None:
    for query in (rule.name, rule.name.lower(), str(rule.id), hex(rule.id)):
        requests = [each for each in meanings_of(query) if each["kind"] == "request"]
        found = [each for each in requests if (each["channel"], each["name"]) == (rule.channel.value, rule.name)]
        assert len(found) == 1
        assert found[0]["id"] == rule.id
    prefix = "VHOST_USER_" if rule.channel.value == "front-end" else "VHOST_USER_BACKEND_"
    assert meanings_of(prefix + rule.name)


@pytest.mark.parametrize("feature", ProtocolFeature, ids=lambda feature: feature.name)
def test_every_protocol_feature_by_name_and_bit(feature: ProtocolFeature) -> None:
    for query in (feature.name, f"VHOST_USER_PROTOCOL_F_{feature.name}", str(int(feature)), hex(feature)):
        assert any(each["kind"] == "protocol feature" and each.get("bit") == feature for each in meanings_of(query))


@pytest.mark.parametrize("name", DIALECTS)
def test_every_dialect_by_name(name: str) -> None:
    (found,) = meanings_of(name)
    assert found["spoken_by"] == DIALECTS[name].spoken_by


def test_bits_that_meant_something_else_say_so() -> None:
    (found,) = [each for each in asked("21") if each["kind"] == "protocol feature"]
    assert found["name"] == "GPA_ADDRESSES"
    assert any("rust-vmm vhost 0.16" in other for other in found["elsewhere"])


def test_a_mask_is_its_features() -> None:
    (found,) = asked("0x400400")
    assert found["protocol_features"] == ["BACKEND_SEND_FD", "SHMEM"]


MAP = message(9, Mmap(3, 0x1000, 0x2000, 0x3000, 1), flags=9).hex(" ")


def test_the_bytes_of_a_message_are_taken_apart() -> None:
    header, other, shmem, *_ = asked(*MAP.split())
    assert (header["request"], header["flags"], header["size"]) == (9, "0x9 (version 1, need_reply)", 40)
    assert other["name"] == "SET_VRING_ADDR"
    assert shmem["payload"] == {
        "shmid": 3,
        "fd_offset": "0x1000",
        "shm_offset": "0x2000",
        "len": "0x3000",
        "flags": "0x1",
    }


@pytest.mark.parametrize("written", [MAP, MAP.replace(" ", ""), MAP.replace(" ", ":"), MAP.replace(" ", ", ")])
def test_bytes_may_be_written_in_any_of_the_usual_ways(written: str) -> None:
    assert meanings_of(written) == meanings_of(MAP)


def test_features_in_a_message_are_named_and_an_older_dialect_is_recognized() -> None:
    (features,) = [each for each in meanings_of(message(16, U64(1 << 22)).hex()) if each["name"] == "SET_PROTOCOL_FEATURES"]
    assert "SHMEM" in str(features["payload_in_words"])
    old = [each for each in meanings_of(message(1000, CrosvmMap(1, 2, 3, 4, 5)).hex()) if "dialect" in str(each["kind"])]
    assert [each["kind"] for each in old] == ["request of dialect crosvm-1000"]


@pytest.mark.parametrize(
    ("data", "fault"),
    [
        (message(9, bytes(39), flags=9), "SHMEM_MAP payload size 39"),
        (message(9, bytes(40), size=41), "40 bytes follow, the header says 41"),
        (message(9, bytes(40), flags=0x11), "reserved bits"),
        (message(9, bytes(40), flags=2), "version"),
        (message(9, b"", size=0xFFFFFFFF), "larger than the largest payload"),
    ],
)
def test_what_is_wrong_with_bytes_is_said(data: bytes, fault: str) -> None:
    assert any(fault in str(each.get("fault", "")) for each in meanings_of(data.hex()))


@pytest.mark.parametrize(
    ("query", "advice"),
    [
        ("SHMEM_MPA", "did you mean SHMEM_MAP"),
        ("nonsense", "try: SHMEM_MAP, 22, or"),
        ("released-", "released"),
        ("-1", "try: SHMEM_MAP, 22, or"),
    ],
)
def test_what_is_unknown_is_one_line_and_exit_code_2(query: str, advice: str) -> None:
    done = run(VHU, "explain", query)
    assert (done.returncode, done.stdout) == (2, "")
    assert advice in one_line(done.stderr)


@pytest.mark.parametrize("query", ["9" * 23, "\x1b[2J", "é" * 300, "0x", ""])
def test_no_query_upsets_it(query: str) -> None:
    done = run(VHU, "explain", "--", query)
    assert done.returncode == 2
    line = one_line(done.stderr)
    assert "\x1b" not in line
    assert len(line) < 600


def test_a_word_lists_the_names_that_it_is_in() -> None:
    done = run(VHU, "explain", "overlapping")
    assert (done.returncode, done.stderr) == (0, "")
    first, *names = done.stdout.splitlines()
    assert first == f"overlapping: in {len(names)} names"
    assert all("overlapping" in name for name in names)
    assert any(name.endswith(": rule for back-ends") for name in names)


def test_a_word_that_is_in_many_names_lists_some_and_says_how_many_more() -> None:
    first, *names, more = run(VHU, "explain", "vring").stdout.splitlines()
    assert len(names) == 10
    assert "  SET_VRING_NUM: request on the front-end channel" in names
    left = int(first.split()[2]) - 10
    assert more == f"  and {left} more; try: a longer word"
    found = json.loads(run(VHU, "explain", "--json", "vring").stdout)
    assert (len(found["names"]), found["more"], found["meanings"]) == (10, left, [])


@pytest.mark.parametrize("query", ["SET_VRING_*", "VHOST_USER_SET_VRING_*", "set_vring_*", "set vring *"])
def test_a_pattern_lists_the_names_that_are_like_it(query: str) -> None:
    found = json.loads(run(VHU, "explain", "--json", query).stdout)
    assert found["names"][0] == {"kind": "request on the front-end channel", "name": "SET_VRING_NUM"}
    assert all(each["name"].lower().startswith("set_vring_") for each in found["names"])


@pytest.mark.parametrize(("query", "kinds"), [("BIT_22", ["protocol feature"]), ("bit_32", ["virtio feature bit"])])
def test_a_bit_may_be_named_as_it_is_shown(query: str, kinds: list[str]) -> None:
    assert [each["kind"] for each in meanings_of(query)] == kinds


@pytest.mark.parametrize("query", ["*", "?", "a*", "[a-z]*", "BIT_99", "\x1b*", "_1_", "12*3"])
def test_a_pattern_without_a_word_is_unknown(query: str) -> None:
    done = run(VHU, "explain", query)
    assert (done.returncode, done.stdout) == (2, "")
    assert "nothing is known by " in one_line(done.stderr)


def test_for_people_it_is_a_heading_and_lines() -> None:
    done = run(VHU, "explain", "SHMEM_MAP")
    assert done.stdout.splitlines()[:4] == [
        "SHMEM_MAP: request",
        "  channel:          back-end",
        "  id:               9",
        "  section:          Back-end message types: VHOST_USER_BACKEND_SHMEM_MAP",
    ]


def test_a_rule_is_a_page() -> None:
    done = run(VHU, "explain", "a_region_may_be_three_pages")
    assert (done.returncode, done.stderr) == (0, "")
    first, *lines = done.stdout.splitlines()
    assert first == "a_region_may_be_three_pages: a rule for front-ends (MUST)"
    assert [line.split()[0] for line in lines if line[2] != " "] == [
        *("rule", "section", "needs", "sends", "expects", "why", "not", "try")
    ]
    assert (
        "https://www.qemu.org/docs/master/interop/vhost-user.html#virtio-shared-memory-region-configuration" in done.stdout
    )
    assert "  not kept by qemu-11.1: the sizes of all regions have to be a power of two together" in done.stdout
    (meaning,) = asked("a region may be three pages")
    assert (meaning["kind"], meaning["level"], list(meaning["not_kept_by"])) == ("rule", "MUST", ["qemu-11.1"])


def test_a_rule_that_is_misspelt_is_recognised() -> None:
    done = run(VHU, "explain", "a_region_may_be_tree_pages")
    assert done.returncode == 2
    assert "did you mean a_region_may_be_three_pages" in one_line(done.stderr)
