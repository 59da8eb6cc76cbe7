"""`python -m vhostuser` is `vhu`."""

from __future__ import annotations

import sys

from .cli.main import main

sys.exit(main())
