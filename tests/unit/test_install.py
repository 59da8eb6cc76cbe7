"""The package as it is installed: with a compiler, and where there is none."""

from __future__ import annotations

import os
import subprocess
import sys
import zipfile
from importlib.util import find_spec
from pathlib import Path
from shutil import copytree, ignore_patterns
from typing import Final

import pytest

TOP: Final = Path(__file__).resolve().parents[2]
SECONDS: Final = 240
SHOW: Final = "import vhostuser, vhostuser.cli.main; print(vhostuser.accelerated, vhostuser.__file__)"


def run(*words: str, **environment: str) -> str:
    """What a program of this interpreter prints; it must succeed."""
    kept = {name: value for name, value in os.environ.items() if not name.startswith(("PYTEST", "COV", "VHOSTUSER_PURE"))}
    done = subprocess.run(
        [sys.executable, *words], env=kept | environment, capture_output=True, text=True, timeout=SECONDS, check=False
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


@pytest.mark.timeout(SECONDS)
@pytest.mark.skipif(not find_spec("Cython") or not find_spec("pip"), reason="run the suite by `make test`, which has Cython")
def test_without_a_compiler_the_wheel_is_pure_and_whole(tmp_path: Path) -> None:
    source = tmp_path / "source"
    copytree(TOP / "src", source / "src", ignore=ignore_patterns("*.so", "*.c", "__pycache__", "*.egg-info"))
    for name in ("pyproject.toml", "setup.py", "README.md", "LICENSE"):
        (source / name).write_bytes((TOP / name).read_bytes())
    options = ("--quiet", "--no-deps", "--no-build-isolation", "--no-index", "--disable-pip-version-check")
    run("-m", "pip", "wheel", *options, "--wheel-dir", str(tmp_path), str(source), CC="/nonexistent/cc")
    (wheel,) = tmp_path.glob("vhostuser-*.whl")
    installed = tmp_path / "installed"
    with zipfile.ZipFile(wheel) as archive:
        archive.extractall(installed)
        names = archive.namelist()
    assert not [name for name in names if name.endswith((".so", ".c"))]
    assert {"vhostuser/py.typed", "vhostuser/descriptors/60-vhu-blk.json", "vhostuser/descriptors/60-vhu-fs.json"} <= set(
        names
    )
    said = run("-P", "-c", SHOW, PYTHONPATH=str(installed))
    assert said.split() == ["False", str(installed / "vhostuser" / "__init__.py")]


@pytest.mark.skipif(not list((TOP / "src").rglob("*.so")), reason="nothing is compiled here: a C compiler enables it")
def test_the_compiled_half_is_live_unless_it_is_not_wanted() -> None:
    assert run("-c", SHOW).split()[0] == "True"
    assert run("-c", SHOW, VHOSTUSER_PURE="1").split()[0] == "False"
