"""`python -m vhostuser.vm.tools` fetches what tests need beside a VM, unless it is there."""

from __future__ import annotations

import sys
from typing import Final

from .browser import BROWSER
from .tmux import TMUX
from .tool import Tool
from .tree import FetchError, OutOfReach
from .tshark import TSHARK

TOOLS: Final = (TSHARK, BROWSER, TMUX)


def main() -> int:
    """Fetch them. Exit code 3 if nothing can be fetched here, 1 if one does not work."""
    try:
        for tool in TOOLS:
            _have(tool)
    except FetchError as error:
        print(f"vhostuser.vm.tools: {error}", file=sys.stderr)
        return 3 if isinstance(error, OutOfReach) else 1
    return 0


def _have(tool: Tool) -> None:
    if not tool.is_there:
        print(f"{tool.name}: {tool.fetch()}")


if __name__ == "__main__":
    sys.exit(main())
