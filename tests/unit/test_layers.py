"""Imports go down only, the two sides don't meet, and the pure rooms import nothing that touches the world."""

from __future__ import annotations

import ast
import re
import sys
from collections.abc import Iterator
from graphlib import TopologicalSorter
from pathlib import Path

import pytest

import vhostuser

ROOT = Path(vhostuser.__file__).parent

ROWS = [
    {"errors", "version", "limited_log", "counters", "faults", "unreaped", "protocol.numbers", "virtio.numbers"},
    {"protocol", "virtio"},
    {"fuse", "_native", "sandbox"},
    {"transport"},
    {"memory"},
    {"plain"},
    {"back-end", "front-end"},
    {"testing", "devices", "drivers", "aio"},
    {"vm", "trace"},
    {"conformance"},
    {"fuzzing", "testing.conformance"},
    {"cli"},
    {"package"},
]
"""Rooms from the bottom up; rooms of one row never import each other. `docs/design.md` draws them."""

SIDES = {
    "back-end": {
        *(
            "device",
            "device_check",
            "bell",
            "shared_memory",
            "objects",
            "port",
            "tracked_split",
            "tracked_packed",
            "virtqueue",
            "kept",
            "vring",
            "ring_work",
            "kick_poller",
            "queue_thread",
            "rings",
            "driver_watch",
        ),
        *("patience", "exports", "serving", "ring_requests", "guest_table", "backend"),
    },
    "front-end": {
        *("asking", "answering", "driving", "negotiation", "queue", "queues", "shared_region", "sharing", "tracking"),
        *("windows", "frontend_options", "frontend", "errands", "lending", "shared_objects"),
    },
    "package": {"__init__", "__main__"},
}
"""The rooms that are no folders."""

FOR_PYTEST = {
    "testing.fixtures": {"pytest"},
    "testing.conformance": {"pytest"},
    "cli.top_app": {"textual", "rich"},
}
"""What is for those who run pytest anyway, or have installed an extra."""

PURE = {"protocol", "virtio", "fuse"}
PURE_NEEDS = {
    *("__future__", "array", "bisect", "collections", "collections.abc", "contextlib", "dataclasses", "enum", "functools"),
    *("itertools", "math", "operator", "re", "struct", "sys", "types", "typing"),
}
"""What a pure room may take from the standard library: no socket, fd, clock or log."""


def room(module: str) -> str:
    """Where a module, named from the package's root, lives."""
    if any(module in row for row in ROWS):
        return module
    first = module.partition(".")[0]
    return next((side for side, modules in SIDES.items() if first in modules), first)


def row(module: str) -> int:
    """How high that is."""
    return next(height for height, rooms in enumerate(ROWS) if room(module) in rooms)


def modules() -> Iterator[tuple[str, ast.Module]]:
    """Each module by name, and its tree."""
    for path in sorted(ROOT.rglob("*.py")):
        name = ".".join(path.relative_to(ROOT).with_suffix("").parts)
        yield name.removesuffix(".__init__") if "." in name else name, ast.parse(path.read_text(), path)


def imports(name: str, tree: ast.Module) -> Iterator[str]:
    """The modules that a module imports: ours from the package's root with a leading dot, others as they are."""
    is_package = (ROOT / name.replace(".", "/") / "__init__.py").exists() or name == "__init__"
    here = [part for part in name.split(".") if part != "__init__"]
    folder = here if is_package else here[:-1]
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and not node.level:
            yield node.module or ""
        elif isinstance(node, ast.ImportFrom):
            base = [*folder[: len(folder) - node.level + 1], *(node.module or "").split(".")]
            names = ["."] if node.module else [f".{alias.name}" for alias in node.names]
            yield from ("." + ".".join(filter(None, [*base, *each.split(".")])) for each in names)


MODULES = dict(modules())
OURS = {name: {each[1:] for each in imports(name, tree) if each.startswith(".")} for name, tree in MODULES.items()}


def test_every_module_has_a_room() -> None:
    assert {name for name in MODULES if not any(room(name) in rooms for rooms in ROWS)} == set()
    assert len(MODULES) > 60


@pytest.mark.parametrize("name", MODULES)
def test_imports_go_down(name: str) -> None:
    for imported in OURS[name]:
        assert imported in MODULES or (ROOT / (imported.replace(".", "/") + ".pyx")).exists(), imported
        assert room(imported) == room(name) or row(imported) < row(name), f"{name} imports {imported}"


def test_no_module_imports_itself_by_a_detour() -> None:
    below = {name: {each for each in imported if each in MODULES} - {name} for name, imported in OURS.items()}
    assert len(list(TopologicalSorter(below).static_order())) == len(MODULES)


@pytest.mark.parametrize("name", [name for name in MODULES if name.partition(".")[0] in PURE])
def test_pure_rooms_touch_nothing(name: str) -> None:
    assert {each for each in imports(name, MODULES[name]) if not each.startswith(".")} <= PURE_NEEDS


@pytest.mark.parametrize("name", MODULES)
def test_only_the_standard_library_is_needed(name: str) -> None:
    outside = {each.partition(".")[0] for each in imports(name, MODULES[name]) if not each.startswith(".")}
    assert outside - sys.stdlib_module_names == FOR_PYTEST.get(name, set())


@pytest.mark.parametrize("path", sorted((ROOT / "_native").glob("*.pyx")), ids=lambda path: path.name)
def test_the_compiled_half_imports_down(path: Path) -> None:
    text = path.read_text()
    assert not re.search(r"^\s*(from|import|cimport) vhostuser", text, re.MULTILINE)
    assert all(row(each) < row("_native") for each in re.findall(r"^from \.\.([\w.]+) c?import", text, re.MULTILINE))


def test_imports_are_at_the_top() -> None:
    """No import inside a function to dodge a cycle."""
    late = [
        f"{name}:{node.lineno}"
        for name, tree in MODULES.items()
        for function in ast.walk(tree)
        if isinstance(function, ast.FunctionDef | ast.AsyncFunctionDef)
        for node in ast.walk(function)
        if isinstance(node, ast.Import | ast.ImportFrom)
    ]
    assert late == []
