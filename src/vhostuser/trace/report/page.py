"""The page: its parts, which are files of the package, and the data in one block, put together."""

from __future__ import annotations

import base64
import hashlib
import json
from importlib import resources
from typing import Final, TextIO

from .model import Data

SCRIPTS: Final = (
    *("words.js", "data.js", "view.js", "scale.js", "region.js", "strip.js", "counts.js", "hands.js", "lanes.js"),
    *("tables.js", "histogram.js", "head.js", "save.js", "main.js"),
)
"""In the order in which they come: what a script calls while it is read has to be above it."""
_ESCAPED: Final[dict[str, str | int | None]] = {"<": "\\u003c", ">": "\\u003e", "&": "\\u0026"}
"""All else that could matter, U+2028 among it, is not ASCII, so `json` escapes it."""


def write_page(data: Data, capture: str, file: TextIO) -> None:
    """Write the page that shows `data` and gives `capture`, which is packed, back."""
    style, script = _part("page.css"), "\n".join(_part(name) for name in SCRIPTS)
    script = f'"use strict";\n(() => {{\n{script}\n}})();\n'
    page = _part("page.html")
    for mark, text in (
        ("@STYLE_HASH@", _digest(style)),
        ("@SCRIPT_HASH@", _digest(script)),
        ("@STYLE@", style),
        ("@SCRIPT@", script),
    ):
        page = page.replace(mark, text)
    start, rest = page.split("@DATA@")
    middle, end = rest.split("@CAPTURE@")
    for text in (start, as_block(data), middle, capture, end):
        file.write(text)


def as_block(data: object) -> str:
    """`data` as JSON in ASCII that ends no script element, opens no comment, and is no markup."""
    text = json.dumps(data, separators=(",", ":"), ensure_ascii=True, allow_nan=False)
    return text.translate(str.maketrans(_ESCAPED))


def _part(name: str) -> str:
    return resources.files(__package__).joinpath(name).read_text(encoding="utf-8")


def _digest(text: str) -> str:
    """What the page's policy lets run: exactly this text, and nothing that a capture could bring in."""
    return "sha256-" + base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()
