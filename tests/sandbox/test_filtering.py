"""Where there can be no filter of system calls, this is said, and what there is serves on."""

from __future__ import annotations

import os

import pytest

from vhostuser.sandbox import filtering
from vhostuser.sandbox.seccomp import Action

from .policies import POLICIES


@pytest.mark.parametrize("policy", POLICIES)
@pytest.mark.parametrize(
    ("machine", "can", "note"),
    [
        ("riscv64", True, "there is no filter of system calls: their numbers on this machine, "),
        ("x86_64", False, "there is no filter of system calls: the kernel has none"),
        ("x86_64", True, ""),
    ],
)
def test_where_there_is_no_filter_this_is_said(
    monkeypatch: pytest.MonkeyPatch, machine: str, can: bool, note: str, policy: str
) -> None:
    """And served all the same: the other walls stand."""
    given: list[bytes] = []

    def filter_calls(program: bytes) -> bool:
        given.append(program)
        return can

    monkeypatch.setattr(filtering, "machine", lambda: machine)
    monkeypatch.setattr(filtering, "filter_calls", filter_calls)
    monkeypatch.setattr(filtering, "forbid_privileges", lambda: None)
    made = POLICIES[policy](os.getpid())
    notes = filtering.filter_process(made, Action.LOG)
    assert note in "".join(notes)
    assert (len(notes), len(given)) == (bool(note), machine == "x86_64")
    assert filtering.filter_process(made, Action.NONE) == []
