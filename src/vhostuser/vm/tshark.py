"""tshark, which tests of captures and of the dissector need. Started by root it loads no dissectors in Lua."""

from __future__ import annotations

from typing import Final

from .tool import Tool
from .tree import loaded

TSHARK: Final = Tool("tshark", ("tshark",), lambda tree: loaded("usr/bin/tshark", tree))
