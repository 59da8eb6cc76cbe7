"""What `vhu doctor` finds out with QEMU."""

from __future__ import annotations

import pytest

from vhostuser.cli import checks

from .shares import ONCE

pytestmark = [pytest.mark.vm, pytest.mark.usefixtures("qemu"), pytest.mark.timeout(300), ONCE]


def test_the_fetched_qemu_has_shared_memory() -> None:
    found = checks.check_qemu()
    assert found.well
    assert found.text.startswith("QEMU 1")
    assert found.text.endswith(", with vhost-user-test-device-pci")


def test_a_guest_that_boots_is_told_from_one_that_does_not(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(checks, "KVM_SECONDS", 120.0)
    assert checks._boot("tcg") == ""
    monkeypatch.setattr(checks, "KVM_SECONDS", 0.2)
    assert checks._boot("tcg") == "a guest with tcg has not booted in 0.2 s"


def test_a_qemu_that_ends_is_told_with_its_last_words(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("vhostuser.vm.machine._CPUS", {"tcg": "none"})
    assert checks._boot("tcg").startswith("a guest with tcg does not boot: ")
    assert "none" in checks._boot("tcg")
