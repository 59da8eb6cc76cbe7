"""Fuzz one target with Atheris: `python -m tests.fuzz.run TARGET [--seconds N] [--seed N] [CORPUS]`.

Ends by itself. What it finds is kept: inputs that reach something new in CORPUS, those that break the invariant in
`.fuzz/crashes`, and then the exit status is not 0.
"""

from __future__ import annotations

import argparse
import logging
import sys
import tempfile
from pathlib import Path
from typing import Final

from tests.fuzz import corpus
from tests.fuzz.targets import KEPT, LONGEST, TARGETS, load

SLOWEST: Final = 25
"""Seconds that one input may take."""


def main() -> None:
    words = _words()
    place = words.corpus or Path(tempfile.mkdtemp(prefix=f"vhu-{words.target}-"))
    corpus.unpack(words.target, place)
    crashes = KEPT / "crashes"
    crashes.mkdir(parents=True, exist_ok=True)
    logging.getLogger("vhostuser").addHandler(logging.NullHandler())
    _fuzz(words.target, [*_options(words), f"-artifact_prefix={crashes}/{words.target}-", str(place)])


def _words() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.partition(":")[0] if __doc__ else "")
    parser.add_argument("target", choices=TARGETS)
    parser.add_argument("--seconds", type=int, default=60)
    parser.add_argument("--seed", type=int, default=0, help="0 is another one each time")
    parser.add_argument("corpus", type=Path, nargs="?", help="a directory; else a new one")
    return parser.parse_intermixed_args()


def _options(words: argparse.Namespace) -> list[str]:
    """What libFuzzer is told; input may come from its dictionary."""
    options = [f"-max_total_time={words.seconds}", f"-seed={words.seed}", f"-max_len={LONGEST}", f"-timeout={SLOWEST}"]
    dictionary = Path(__file__).parent / "oss_fuzz" / f"{words.target}.dict"
    return [*options, "-print_final_stats=1", "-len_control=20", "-rss_limit_mb=4096", f"-dict={dictionary}"]


def _fuzz(target: str, options: list[str]) -> None:
    try:
        import atheris
    except ImportError:
        sys.exit("Atheris is not installed: pip install '.[fuzz]' (it exists for Python 3.11 to 3.13)")
    with atheris.instrument_imports(include=["vhostuser"]):
        one_input = load(target)
    import vhostuser

    print(f"{target}, with {'the compiled half' if vhostuser.accelerated else 'pure Python alone'}", flush=True)
    atheris.Setup([sys.argv[0], *options], one_input)
    atheris.Fuzz()


if __name__ == "__main__":
    main()
