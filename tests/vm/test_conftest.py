"""A missing QEMU skips tests that need it, and fails them where it is required."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from vhostuser.vm import tree

from . import conftest


@pytest.fixture
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A cache of our own, with nothing in it."""
    monkeypatch.setenv("VHOSTUSER_CACHE", str(tmp_path))
    return tmp_path / "vm"


def test_a_missing_qemu_is_reported_with_the_command_that_fetches_it(cache: Path) -> None:
    assert conftest.unavailable(cache) == f"no QEMU in {cache}: run `make vm` once, with a network"


def test_a_qemu_that_does_not_start_is_reported(cache: Path) -> None:
    cache.mkdir()
    wanted = [*tree.WANTED, *(f"{part}7.3" for part in tree.KERNEL_PARTS)]
    (cache / tree.STAMP).write_text(json.dumps(dict.fromkeys(wanted, "1:11.1.3")))
    reason = conftest.unavailable(cache)
    assert reason is not None
    assert reason.startswith(f"the QEMU in {cache} ends with 127")
    assert reason.endswith("remove that folder, then run `make vm` once, with a network")


@pytest.mark.parametrize("value", [None, "", "0"])
def test_without_the_requirement_tests_are_skipped(value: str | None, monkeypatch: pytest.MonkeyPatch) -> None:
    if value is None:
        monkeypatch.delenv(conftest.REQUIRED, raising=False)
    else:
        monkeypatch.setenv(conftest.REQUIRED, value)
    with pytest.raises(pytest.skip.Exception, match="why"):
        conftest.give_up("why")


def test_with_the_requirement_tests_fail(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(conftest.REQUIRED, "1")
    with pytest.raises(pytest.fail.Exception, match=r"why \(VHOSTUSER_REQUIRE_VM is set\)"):
        conftest.give_up("why")
