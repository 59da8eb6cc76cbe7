"""The kernel's own `linux/fuse.h`, and what a C compiler makes of it."""

from __future__ import annotations

import os
import re
import subprocess
from collections.abc import Iterable, Sequence
from pathlib import Path

HERE = Path(__file__).resolve().parents[2]
SYSTEM = Path("/usr/include")
NAME = "linux/fuse.h"
UNNAMED = re.compile(r"(?:padding|unused|dummy|reserved|spare|__spare)\d*")
"""What fields are called that say nothing."""
_STRUCT = re.compile(r"^struct fuse_(\w+) \{(.*?)^\};", re.MULTILINE | re.DOTALL)
_FIELD = re.compile(r"(\w+)(?:\[[^\]]*\])?;")
_COMMENT = re.compile(r"/\*.*?\*/", re.DOTALL)
_OPCODE = re.compile(r"^\s*FUSE_(\w+)\s*=\s*(\d+),", re.MULTILINE)


def fetched() -> Path:
    """Where `make vm` puts what it fetches."""
    return Path(os.environ.get("VHOSTUSER_CACHE") or HERE / ".cache").absolute() / "vm"


def include_folder() -> Path:
    """The folder with the header: the fetched one, which is as new as is spoken here, or else this machine's.

    FileNotFoundError if neither is there, or something was fetched without it.
    """
    tree = fetched()
    folder = tree / "usr/include" if tree.exists() else SYSTEM
    if not (folder / NAME).exists():
        raise FileNotFoundError(f"no {folder / NAME}: run `make vm` again, or install linux-libc-dev")
    return folder


def structs(text: str) -> dict[str, list[str]]:
    """The fields of each struct of the header, by its name without `fuse_`."""
    plain = _COMMENT.sub("", text)
    return {name: _FIELD.findall(body) for name, body in _STRUCT.findall(plain)}


def opcodes(text: str) -> dict[str, int]:
    """The requests of the header, by their names without `FUSE_`."""
    body = _COMMENT.sub("", text).partition("enum fuse_opcode {")[2].partition("};")[0]
    return {name: int(value) for name, value in _OPCODE.findall(body)}


def evaluate(folder: Path, scratch: Path, expressions: Sequence[str]) -> list[int]:
    """What the compiler says that these are worth."""
    lines = "".join(f'    printf("%llu\\n", (unsigned long long)({each}));\n' for each in expressions)
    start = f'#include <stddef.h>\n#include <stdio.h>\n#include "{folder / NAME}"\nint main(void)\n{{\n'
    source, program = scratch / "values.c", scratch / "values"
    source.write_text(f"{start}{lines}    return 0;\n}}\n")
    subprocess.run(["cc", "-o", program, source], check=True, capture_output=True, timeout=60)
    done = subprocess.run([program], check=True, capture_output=True, text=True, timeout=60)
    return [int(line) for line in done.stdout.split()]


def known(text: str, names: Iterable[str]) -> list[str]:
    """Those of these names that the header has."""
    words = set(re.findall(r"\w+", text))
    return [name for name in names if name in words]
