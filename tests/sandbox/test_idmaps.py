"""Ids of a user namespace: what can't be taken on is named."""

from __future__ import annotations

import errno
import os

import pytest

from vhostuser.sandbox.idmaps import IdRange, Maps, become_inner
from vhostuser.sandbox.system import SandboxError

MAPS = Maps((IdRange(5, 1000, 1),), (IdRange(0, 1000, 1),))
STEPS = {
    "setgroups": "cannot leave the groups of the host",
    "setresgid": "cannot be group 0 of the user namespace",
    "setresuid": "cannot be user 5 of the user namespace",
}


@pytest.fixture
def asked(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The calls that were made; none of them does anything."""
    made: list[str] = []
    for name in STEPS:
        monkeypatch.setattr(os, name, lambda *ids, name=name: made.append(name))
    return made


@pytest.mark.parametrize("groups", [True, False])
def test_groups_are_left_where_that_can_be(asked: list[str], groups: bool) -> None:
    become_inner(MAPS, groups=groups)
    assert asked == list(STEPS)[not groups :]


@pytest.mark.usefixtures("asked")
@pytest.mark.parametrize("step", STEPS)
def test_the_step_that_fails_is_named(monkeypatch: pytest.MonkeyPatch, step: str) -> None:
    def refuse(*ids: object) -> None:
        raise PermissionError(errno.EPERM, os.strerror(errno.EPERM))

    monkeypatch.setattr(os, step, refuse)
    with pytest.raises(SandboxError, match=STEPS[step]) as caught:
        become_inner(MAPS, groups=True)
    assert (caught.value.errno, caught.value.advice[:4]) == (errno.EPERM, "try:")
