"""Fuzz with the compiled half built for AddressSanitizer and UBSan: `python -m tests.fuzz.sanitized TARGET [OPTIONS]`.

The package is copied to a directory of its own and built there by gcc; options are those of `tests.fuzz.run`. Atheris comes
with a run-time library that is libFuzzer and both sanitizers in one, and what gcc builds finds its functions there.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Final

from tests.fuzz.targets import COMPILED

ROOT: Final = Path(__file__).resolve().parents[2]
FLAGS: Final = "-fsanitize=address,undefined -fno-sanitize-recover=all -fno-omit-frame-pointer -g"
COMPILER: Final = f"""#!/bin/sh
case " $* " in *" -c "*) exec gcc {FLAGS} "$@" ;; esac
exec gcc "$@"
"""
"""Links without the flags: the run-time library is left to who loads it."""
WITHOUT_LEAKS: Final = "detect_leaks=0:handle_sigbus=0:allow_user_segv_handler=1:allocator_may_return_null=1:exitcode=78"
"""Python frees little at its end. SIGBUS belongs to the guards of the compiled half."""


def build(into: Path) -> None:
    """The package with its compiled half, instrumented."""
    shutil.copytree(ROOT / "src", into / "src", ignore=shutil.ignore_patterns("*.so", "__pycache__"))
    for name in ("setup.py", "pyproject.toml", "README.md", "LICENSE"):
        shutil.copy(ROOT / name, into)
    compiler = into / "gcc"
    compiler.write_text(COMPILER)
    compiler.chmod(0o755)
    command = [sys.executable, "setup.py", "-q", "build_ext", "--inplace"]
    subprocess.run(command, cwd=into, env=os.environ | {"CC": str(compiler)}, check=True)
    if not list((into / "src/vhostuser/_native").glob("*.so")):
        sys.exit("nothing was built: is there a compiler, and Cython?")


def runtime() -> Path:
    """The library that Atheris has for this. ImportError if it has none."""
    import atheris

    found = Path(atheris.path()) / "asan_with_fuzzer.so"
    if not found.exists():
        raise ImportError(f"{found} is not there")
    return found


def main() -> None:
    if len(sys.argv) < 2 or sys.argv[1] not in COMPILED:
        sys.exit(f"usage: python -m tests.fuzz.sanitized {'|'.join(COMPILED)} [OPTIONS OF tests.fuzz.run]")
    with tempfile.TemporaryDirectory(prefix="vhu-sanitized-") as name:
        build(Path(name))
        environment = os.environ | {
            "PYTHONPATH": os.pathsep.join([f"{name}/src", str(ROOT), *filter(None, [os.environ.get("PYTHONPATH")])]),
            "LD_PRELOAD": str(runtime()),
            "ASAN_OPTIONS": WITHOUT_LEAKS,
            "UBSAN_OPTIONS": "print_stacktrace=1:halt_on_error=1",
            "PYTHONMALLOC": "malloc",
        }
        command = [sys.executable, "-m", "tests.fuzz.run", *sys.argv[1:]]
        sys.exit(subprocess.run(command, env=environment, check=False).returncode)


if __name__ == "__main__":
    main()
