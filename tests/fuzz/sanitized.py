"""Fuzz with the compiled half built for AddressSanitizer and UBSan: `python -m tests.fuzz.sanitized TARGET [OPTIONS]`.

The package is copied to a directory of its own and built there by gcc; options are those of `tests.fuzz.run`. Atheris comes
with a run-time library that is libFuzzer and both sanitizers in one, and what gcc builds finds its functions there.
"""

from __future__ import annotations

import hashlib
import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Final

from tests.fuzz.targets import COMPILED, KEPT

ROOT: Final = Path(__file__).resolve().parents[2]
FLAGS: Final = "-fsanitize=address,undefined -fno-sanitize-recover=all -fno-omit-frame-pointer -g1 -O1"
COMPILER: Final = f"""#!/bin/sh
case " $* " in *" -c "*) exec gcc "$@" {FLAGS} ;; esac
exec gcc "$@"
"""
"""Links without the flags: the run-time library is left to who loads it."""
WITHOUT_LEAKS: Final = "detect_leaks=0:handle_sigbus=0:allow_user_segv_handler=1:allocator_may_return_null=1:exitcode=78"
"""Python frees little at its end. SIGBUS belongs to the guards of the compiled half."""


def built() -> Path:
    """The package with its compiled half, instrumented; made again where a source has changed."""
    sources = [*sorted((ROOT / "src/vhostuser/_native").glob("*.p[yx]*")), ROOT / "setup.py"]
    digest = hashlib.sha256(COMPILER.encode() + b"".join(path.read_bytes() for path in sources)).hexdigest()
    into = KEPT.resolve() / "sanitized" / f"{digest[:16]}-{sys.implementation.cache_tag}"
    if not (into / "done").exists():
        shutil.rmtree(into.parent, ignore_errors=True)
        _build(into)
        (into / "done").touch()
    shutil.copytree(ROOT / "src", into / "src", ignore=shutil.ignore_patterns("*.so", "__pycache__"), dirs_exist_ok=True)
    return into / "src"


def _build(into: Path) -> None:
    shutil.copytree(ROOT / "src", into / "src", ignore=shutil.ignore_patterns("*.so", "*.c", "__pycache__"))
    for name in ("setup.py", "pyproject.toml", "README.md", "LICENSE"):
        shutil.copy(ROOT / name, into)
    compiler = into / "gcc"
    compiler.write_text(COMPILER)
    compiler.chmod(0o755)
    command = [sys.executable, "setup.py", "-q", "build_ext", "--inplace", "--parallel", str(os.cpu_count())]
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
    environment = os.environ | {
        "PYTHONPATH": os.pathsep.join([str(built()), str(ROOT), *filter(None, [os.environ.get("PYTHONPATH")])]),
        "LD_PRELOAD": str(runtime()),
        "ASAN_OPTIONS": WITHOUT_LEAKS,
        "UBSAN_OPTIONS": "print_stacktrace=1:halt_on_error=1",
        "PYTHONMALLOC": "malloc",
    }
    command = [sys.executable, "-m", "tests.fuzz.run", *sys.argv[1:]]
    sys.exit(subprocess.run(command, env=environment, check=False).returncode)


if __name__ == "__main__":
    main()
