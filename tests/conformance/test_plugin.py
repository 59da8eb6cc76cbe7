"""The plug-in of pytest: run as its users do, in a folder and a process of their own."""

from __future__ import annotations

import os
import shlex
import subprocess
import sys
from pathlib import Path
from typing import Final

import pytest

from vhostuser.testing import DEADLINE

TOP: Final = Path(__file__).resolve().parents[2]
PLUG_IN: Final = "vhostuser.testing.conformance"
ALONE: Final = {"COLUMNS": "200", "PYTEST_DISABLE_PLUGIN_AUTOLOAD": "1"}
"""Ours is the only plug-in, so that pytest begins soon."""
TESTS: Final = "from vhostuser.testing.conformance import test_back_end_keeps\n"
RNG: Final = f"{shlex.quote(sys.executable)} -m vhostuser.cli.rng --socket-path {{socket}} --reconnect"
WRONG: Final = "an_unknown_request_is_refused"
SHOULD: Final = "set_vring_num_of_ring_255_is_refused"
BEHIND: Final = f'''
import pytest
from tests.conformance.devices import Plain
from tests.conformance.wrong import Behind
from tests.conformance.wrong_back_end import WRONG

@pytest.fixture(scope="module")
def back_end_peer():
    with Behind(Plain, WRONG["{WRONG}"].alter) as peer:
        yield peer
'''
"""A back-end of ours that breaks one rule, as a fixture."""
HERE: Final = """
import pytest
from tests.conformance.devices import Plain
from vhostuser.testing import listening
from vhostuser.testing.conformance import Listening

@pytest.fixture(scope="session")
def back_end_peer():
    with listening(Plain()) as (path, _):
        yield Listening(path)

@pytest.fixture(scope="session")
def back_end_device():
    return "echo"
"""
"""One that keeps them, and says what it is."""
FRONT_TESTS: Final = "from vhostuser.testing.conformance import test_front_end_keeps\n"
FRONT_RULE: Final = "the_first_page_can_be_mapped"
ATTACH: Final = shlex.join([sys.executable, "-m", "vhostuser", "attach", "{socket}"])
CALLED: Final = """
import pytest
from vhostuser.frontend import Frontend
from vhostuser.testing.conformance import Called

def serve(path):
    with Frontend.connect(path) as frontend:
        frontend.share_memory(1 << 16)
        frontend.start_queue(0, size=16)
        frontend.serve()

@pytest.fixture(scope="module")
def front_end_peer():
    with Called({function}) as peer:
        yield peer
"""
"""A front-end of ours, as a fixture."""
NAMED: Final = "an_unknown_request or regions_can_be_reserved"


def pytest_in(folder: Path, *words: str, tests: str = TESTS) -> tuple[int, str]:
    """The exit status of pytest, and what it says, where there is a file with these tests."""
    (folder / "test_mine.py").write_text(tests)
    quiet = ["-q", "-W", "error", "-p", "no:cacheprovider", "-ra"]
    kept = {name: value for name, value in os.environ.items() if not name.startswith(("PYTEST", "COV", "PYTHONOPTIMIZE"))}
    done = subprocess.run(
        [sys.executable, "-m", "pytest", *quiet, *words],
        cwd=folder,
        env=kept | {"PYTHONPATH": os.pathsep.join([*sys.path, str(TOP)]), **ALONE},
        capture_output=True,
        text=True,
        timeout=4 * DEADLINE,
        check=False,
    )
    assert "Traceback" not in done.stdout + done.stderr
    return done.returncode, done.stdout + done.stderr


def test_a_command_that_keeps_the_rules_passes(tmp_path: Path) -> None:
    code, said = pytest_in(tmp_path, "-p", PLUG_IN, "--vhost-user-run", RNG, "-k", NAMED, "-vv")
    assert code == 0, said
    assert f"test_mine.py::test_back_end_keeps[{WRONG}] PASSED" in said
    assert "SKIPPED [1]" in said
    assert "it does not offer SHMEM" in said


def test_the_settings_of_a_project_suffice(tmp_path: Path) -> None:
    lines = [f'addopts = ["-p", "{PLUG_IN}"]', f"vhost_user_run = '''{RNG}'''", 'vhost_user_device = "rng"']
    (tmp_path / "pyproject.toml").write_text("\n".join(["[tool.pytest.ini_options]", *lines]))
    code, said = pytest_in(tmp_path, "-k", "a_ring_goes_on_where_it_stopped or " + WRONG)
    assert code == 0, said
    assert "2 passed" in said  # that about rings too, for it is told what the device is


def test_one_that_breaks_a_rule_fails_its_test_alone(tmp_path: Path) -> None:
    code, said = pytest_in(tmp_path, "-p", PLUG_IN, "-k", NAMED, tests=TESTS + BEHIND)
    assert code == 1, said
    assert said.count("\nFAILED") == 1
    assert f"FAILED test_mine.py::test_back_end_keeps[{WRONG}]" in said
    block = said[said.index("= FAILURES =") : said.index("short test summary")]
    assert all(f"\n    {word:10}" in block for word in ("rule", "expected", "got", "sent"))
    assert "conformance.py" not in block


def test_a_back_end_that_is_not_there_is_told_once(tmp_path: Path) -> None:
    code, said = pytest_in(tmp_path, "-p", PLUG_IN, "--vhost-user-run", "no-such-command {socket}", "-k", "unknown_request")
    assert code == 1
    assert said.count("\nFAILED") == 1
    assert "the back-end is not there: cannot start no-such-command: No such file or directory" in said
    assert "SKIPPED" in said


def test_no_back_end_at_all_is_told_with_what_to_do(tmp_path: Path) -> None:
    code, said = pytest_in(tmp_path, "-p", PLUG_IN, "-k", WRONG)
    assert code == 1
    assert "no back-end was named; try: --vhost-user-run CMD, or a fixture back_end_peer" in said


def test_what_a_profile_knows_is_an_expected_failure(tmp_path: Path) -> None:
    words = ("-p", PLUG_IN, "--vhost-user-profile", "libvhost-user", "-k", SHOULD)
    code, said = pytest_in(tmp_path, *words, tests=TESTS + BEHIND.replace(WRONG, SHOULD))
    assert code == 0, said
    assert f"XFAIL test_mine.py::test_back_end_keeps[{SHOULD}]" in said
    code, said = pytest_in(tmp_path, *words, "--runxfail", tests=TESTS + BEHIND.replace(WRONG, SHOULD))
    assert code == 1, said


def test_what_is_better_than_its_profile_fails(tmp_path: Path) -> None:
    code, said = pytest_in(
        tmp_path, "-p", PLUG_IN, "--vhost-user-profile", "libvhost-user", "--vhost-user-run", RNG, "-k", SHOULD
    )
    assert code == 1
    assert "kept, though the profile says" in said


def test_what_is_no_must_is_named_and_fails_only_if_strict(tmp_path: Path) -> None:
    words, tests = ("-p", PLUG_IN, "-k", SHOULD), TESTS + BEHIND.replace(WRONG, SHOULD)
    code, said = pytest_in(tmp_path, *words, "-rP", tests=tests)
    assert code == 0, said
    assert "vhost-user: not kept, and no failure" in said
    assert f"broken  SHOULD {SHOULD}" in said
    code, said = pytest_in(tmp_path, *words, "--vhost-user-profile", "strict", tests=tests)
    assert code == 1
    assert f"FAILED test_mine.py::test_back_end_keeps[{SHOULD}]" in said


def test_two_files_have_a_back_end_each(tmp_path: Path) -> None:
    (tmp_path / "test_other.py").write_text(TESTS + BEHIND)
    code, said = pytest_in(tmp_path, "-p", PLUG_IN, "--vhost-user-run", RNG, "-k", WRONG)
    assert code == 1
    assert "1 failed, 1 passed" in said
    assert f"FAILED test_other.py::test_back_end_keeps[{WRONG}]" in said


def test_a_conftest_may_load_it_and_bring_the_back_end(tmp_path: Path) -> None:
    (tmp_path / "conftest.py").write_text(f'pytest_plugins = ["{PLUG_IN}"]\n{HERE}')
    code, said = pytest_in(tmp_path, "-k", "a_ring_goes_on_where_it_stopped or " + WRONG)
    assert code == 0, said
    assert "2 passed" in said  # that about rings too, for it is told what the device is


@pytest.mark.parametrize(
    ("option", "value"),
    [
        *(("device", "teapot"), ("profile", "nobody"), ("timeout", "nan"), ("run", "'"), ("run", " ")),
        *(("front-run", "'"), ("front-profile", "nobody")),
    ],
)
def test_an_option_that_is_none_is_told_before_anything_is_tested(tmp_path: Path, option: str, value: str) -> None:
    code, said = pytest_in(tmp_path, "-p", PLUG_IN, f"--vhost-user-{option}", value)
    assert code == pytest.ExitCode.USAGE_ERROR
    assert said.startswith(f"ERROR: vhost_user_{option.replace('-', '_')} ")


def test_a_front_end_of_the_same_process_is_a_function_of_a_path(tmp_path: Path) -> None:
    rules = f"{FRONT_RULE} or rings_are_stopped_by"
    code, said = pytest_in(tmp_path, "-p", PLUG_IN, "-k", rules, "-vv", tests=FRONT_TESTS + CALLED.format(function="serve"))
    assert code == 0, said
    assert f"test_mine.py::test_front_end_keeps[{FRONT_RULE}] PASSED" in said
    assert "it does not stop its rings by itself" in said  # which is skipped


def test_a_front_end_may_be_a_command_and_both_sides_one_file(tmp_path: Path) -> None:
    runs = ("--vhost-user-front-run", ATTACH, "--vhost-user-run", RNG)
    code, said = pytest_in(tmp_path, "-p", PLUG_IN, *runs, "-k", f"{FRONT_RULE} or {WRONG}", tests=FRONT_TESTS + TESTS)
    assert code == 0, said
    assert "2 passed" in said


@pytest.mark.parametrize(
    ("function", "why"),
    [
        ("lambda path: 1 / 0", "the front-end raised ZeroDivisionError: division by zero without having connected to "),
        ("lambda path: None", "the front-end returned without having connected to "),
    ],
)
def test_a_front_end_that_does_not_connect_is_told_once(tmp_path: Path, function: str, why: str) -> None:
    tests = FRONT_TESTS + CALLED.format(function=function)
    code, said = pytest_in(tmp_path, "-p", PLUG_IN, "-k", "page_can_be_mapped", tests=tests)
    assert code == 1
    assert said.count("\nFAILED") == 1
    assert f"the front-end is not there: {why}" in said


def test_what_a_front_end_raises_is_a_crash(tmp_path: Path) -> None:
    dies = "lambda path: (serve(path), {}['what it forgot'])"
    tests = FRONT_TESTS + CALLED.format(function=dies).replace("frontend.serve()", "frontend.serve(0.5)")
    code, said = pytest_in(tmp_path, "-p", PLUG_IN, "-k", FRONT_RULE, tests=tests)
    assert code == 1
    assert "a right back-end was too much for it already: it raised KeyError: 'what it forgot'" in said


def test_no_front_end_at_all_is_told_with_what_to_do(tmp_path: Path) -> None:
    code, said = pytest_in(tmp_path, "-p", PLUG_IN, "-k", FRONT_RULE, tests=FRONT_TESTS)
    assert code == 1
    assert "no front-end was named; try: --vhost-user-front-run CMD, or a fixture front_end_peer" in said
