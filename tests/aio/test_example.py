"""The example that the package shows."""

from __future__ import annotations

import asyncio
import tempfile
import textwrap
from typing import Any

from vhostuser import aio

from .loops import run


def test_the_example_does_what_it_says() -> None:
    assert aio.__doc__
    text = textwrap.dedent(aio.__doc__.partition("\n\n    class")[2].join(["    class", ""]))
    names: dict[str, Any] = {"asyncio": asyncio, **{name: getattr(aio, name) for name in aio.__all__}}
    exec(compile(text, "example", "exec"), names)  # what a reader would type
    with tempfile.TemporaryDirectory(prefix="vhu-") as folder:
        assert run(names["main"](f"{folder}/s")) == [b"rang"] * 100
