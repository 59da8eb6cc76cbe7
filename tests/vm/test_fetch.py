"""What `fetch` decides without a network."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from vhostuser.cli import vm_fetch
from vhostuser.cli.outcome import CommandError
from vhostuser.vm import apt, fetch, tree


@pytest.mark.parametrize("version", ["1:11.0.9+ds-1", "1:10.2.0", "unknown"])
def test_an_older_qemu_is_refused_with_the_reason(version: str) -> None:
    with pytest.raises(tree.FetchError, match=r"shared memory regions need 11\.1"):
        fetch._check_version(version)


@pytest.mark.parametrize("version", ["1:11.1.0+ds-1", "11.10.0", "1:12.0"])
def test_a_newer_qemu_is_accepted(version: str) -> None:
    fetch._check_version(version)


def test_a_folder_that_holds_something_else_is_left_alone(tmp_path: Path) -> None:
    (tmp_path / "precious").touch()
    with pytest.raises(tree.FetchError, match="holds something else"):
        fetch.fetch(tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == ["precious"]


def test_an_empty_cache_variable_counts_as_unset(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("VHOSTUSER_CACHE", "")
    assert tree.cache_folder().parts[-2:] == (".cache", "vm")


def test_what_is_installed_caches_where_the_user_does(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("VHOSTUSER_CACHE", raising=False)
    monkeypatch.setattr(tree, "_PACKAGE", tmp_path / "site-packages" / "vhostuser")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    assert tree.cache_folder() == tmp_path / "vhostuser" / "vm"


def test_without_a_tree_the_commands_say_how_to_get_one(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("VHOSTUSER_CACHE", str(tmp_path))
    assert not tree.is_fetched()
    with pytest.raises(tree.FetchError, match=r"run `vhu vm fetch` once"):
        tree.qemu_command()


def test_a_tree_of_before_a_program_was_wanted_is_not_complete(tmp_path: Path) -> None:
    wanted = [*tree.WANTED, *(f"{part}7.3" for part in tree.KERNEL_PARTS)]
    for missing in (None, *wanted):
        (tmp_path / tree.STAMP).write_text(json.dumps({name: "1" for name in wanted if name != missing}))
        assert tree.is_fetched(tmp_path) == (missing is None)


def test_a_list_past_its_date_is_reported(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "old_InRelease").write_text("Suite: x\nValid-Until: Sat, 21 Nov 2020 02:10:46 UTC\n")
    (tmp_path / "new_InRelease").write_text("Suite: x\nValid-Until: Sat, 21 Nov 2999 02:10:46 UTC\n")
    apt.warn_of_old_lists(tmp_path)
    assert capsys.readouterr().err.count("warning: old_InRelease was valid until Sat, 21 Nov 2020") == 1


def test_a_tree_must_have_an_absolute_path() -> None:
    with pytest.raises(tree.FetchError, match="must be an absolute path"):
        fetch.unpack(Path("some.deb"), Path())


@pytest.mark.parametrize(("trouble", "code"), [(tree.OutOfReach("no network"), 3), (tree.FetchError("broken"), 1)])
def test_what_can_not_be_reached_is_told_from_what_is_broken(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, trouble: tree.FetchError, code: int
) -> None:
    def fail(*_: object, **__: object) -> None:
        raise trouble

    monkeypatch.setattr(vm_fetch, "fetch", fail)
    with pytest.raises(CommandError) as failure:
        vm_fetch.vm_fetch(["--into", str(tmp_path)])
    assert failure.value.code == code
