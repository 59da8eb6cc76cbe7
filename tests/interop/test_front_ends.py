"""Real front-ends held to some rules: that they get as far as the rules need, and keep what they are known to keep."""

from __future__ import annotations

import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from tests.vm.conftest import give_up
from vhostuser.conformance.check_frontend import check_front_end, front_end_rules, reach_of
from vhostuser.conformance.front_profiles import FRONT_END_PROFILES
from vhostuser.conformance.frontend_peer import Launched
from vhostuser.conformance.outcome import Outcome, Result, under
from vhostuser.protocol.numbers import protocol_feature_names
from vhostuser.vm.tree import blkio_flags, loaded

pytestmark = [pytest.mark.vm, pytest.mark.usefixtures("qemu")]

QEMU = [sys.executable, "-m", "tests.interop.qemu_front", "{socket}"]
SHARED = (
    "the_whole_region_can_be_mapped",
    "a_mapping_during_another_is_refused",
    "unmapping_two_mappings_at_once_is_refused",
)
SOME = (
    *("regions_lie_in_their_files", "rings_lie_in_shared_memory", "a_ring_is_told_whole_before_it_starts"),
    "payloads_are_those_of_their_requests",
)


def checked(peer: Launched, names: tuple[str, ...], *, profile: str = "spec") -> dict[str, Outcome]:
    rules = [rule for rule in front_end_rules() if rule.name in names]
    outcomes = check_front_end(rules, peer, reach_of(peer, quiet=2.0))
    return {each.rule.name: under(FRONT_END_PROFILES[profile], each) for each in outcomes}


def test_qemu_with_a_driver_keeps_what_it_keeps() -> None:
    with Launched(QEMU) as peer:
        found = checked(peer, (*SHARED, *SOME))
    assert {name: each.got for name, each in found.items() if each.result is not Result.KEPT} == {}
    assert found.keys() == {*SHARED, *SOME}


def test_qemu_does_what_its_profile_says() -> None:
    names = ("a_back_end_request_of_version_2_is_not_obeyed", "a_mapping_with_32_bytes_is_refused")
    with Launched(QEMU) as peer:
        found = checked(peer, names, profile="qemu-11.1")
    assert [each.result for each in found.values()] == [Result.KNOWN] * 2


@pytest.fixture(scope="module")
def blkio(tmp_path_factory: pytest.TempPathFactory) -> list[str]:
    """The command line of libblkio as a front-end."""
    if not shutil.which("gcc"):
        give_up("no gcc here to compile a program with libblkio")
    program = tmp_path_factory.mktemp("blkio") / "front"
    source = Path(__file__).with_name("blkio_front.c")
    subprocess.run(["gcc", "-O1", "-o", str(program), str(source), *blkio_flags()], check=True, timeout=60)
    return [*loaded(program), "{socket}"]


def test_libblkio_keeps_what_is_about_rings_and_memory(blkio: list[str]) -> None:
    with Launched(blkio) as peer:
        reach = reach_of(peer, quiet=1.0)
        assert {"CONFIGURE_MEM_SLOTS", "REPLY_ACK", "CONFIG"} <= protocol_feature_names(reach.protocol)
        found = checked(peer, SOME)
    assert {name: each.result for name, each in found.items()} == dict.fromkeys(SOME, Result.KEPT)
