"""docs/matrix.md and all below docs/findings, made from what is stored: the same from the same."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Final

from .finding import findings, found, table, versions
from .kill_page import kill_report, kills
from .kills import KILLS
from .peers import PEERS, Peer
from .store import FINDINGS, TOP, Run, load

LEVELS: Final = ("MUST", "SHOULD", "advice")
PAGE: Final = TOP / "docs/matrix.md"
Runs = list[tuple[Peer, Run]]


def made() -> dict[str, str]:
    """All generated texts by their paths below docs."""
    runs = [(peer, run) for peer in PEERS if (run := load(peer.name))]
    texts = {"matrix.md": "\n".join(_page(runs)) + "\n"}
    for peer, run in runs:
        texts |= {f"findings/{path}": text for path, text in findings(peer, run).items()}
    return texts | {f"findings/qemu/{name}.md": kill_report(name) for name in kills()}


def ours(pattern: str) -> list[Path]:
    """The files below docs/findings that are made from runs: what other programs found there is theirs."""
    return [path for peer in PEERS for path in (FINDINGS / peer.name).glob(pattern)]


def write() -> None:
    """Write them, and take away what is there of earlier runs, and captures that no finding shows."""
    texts = made()
    for old in ours("*.pcapng"):
        beside = f"findings/{old.parent.name}/"
        if not any(f"]({old.name})" in text for path, text in texts.items() if path.startswith(beside)):
            old.unlink()
    for old in ours("*.md"):
        if f"findings/{old.relative_to(FINDINGS)}" not in texts:
            old.unlink()
    for path, text in texts.items():
        place = TOP / "docs" / path
        place.parent.mkdir(parents=True, exist_ok=True)
        place.write_text(text)


def _page(runs: Runs) -> Iterator[str]:
    yield "# Real peers, held to the specification"
    yield ""
    yield "Written by `make matrix` (`make matrix PEER=NAME` for one) from the results in docs/matrix/: do not edit. Rules,"
    yield "levels and results are those of [vhu check](check.md), without a profile: what is not kept is told, known or not."
    yield ""
    yield from _peers(runs)
    yield from ("", "## Why rules were skipped", "")
    for peer, run in runs:
        yield from _skipped(peer, run)
    yield from ("", "## By section", "", "Rules kept / not kept; those that were skipped are in neither number.", "")
    for side in ("back-end", "front-end"):
        yield from _sections(side, [(peer, run) for peer, run in runs if peer.side == side and run.verdicts])
    yield from ("## What is not kept", "")
    for peer, run in runs:
        yield from _deviations(peer, run)
    yield from _kills()
    yield from ("## Commands", "", "DISK is an empty file of 16 MiB, DIR an empty directory, HOST a path.")
    yield "`python benchmarks/fetch_rust.py tests/matrix/rust NAME` builds a rust-... and prints where it is;"
    yield from ("`python -m tests.interop.qemu_guest --save STATE` makes a STATE.", "")
    yield from ("```", *(run.command for _, run in runs), "```")


def _peers(runs: Runs) -> Iterator[str]:
    head = ("peer", "side", "version", "run", "rules", "kept", *(f"{level} not kept" for level in LEVELS), "skipped")
    rows: list[tuple[object, ...]] = []
    for peer, run in runs:
        results, levels = Counter(each.result for each in run.verdicts), Counter(each.level for each in run.bad)
        when = f"{run.date}{'; ' + run.over if run.over else ''}"
        counts = (len(run.verdicts), results["kept"], *(levels[level] for level in LEVELS), results["skipped"])
        rows.append((peer.title, peer.side, versions(run), when, *(counts if run.verdicts else "-" * len(counts))))
    named = {peer.name for peer, _ in runs}
    missing = [peer.title for peer in PEERS if peer.name not in named]
    rows += [(title, "-", "-", "not run: there is no result of it", *"------") for title in missing]
    yield from table(head, rows)
    for peer, _ in runs:
        if peer.why:
            yield from ("", f"{peer.title}: {peer.why}.")


def _skipped(peer: Peer, run: Run) -> Iterator[str]:
    reasons = Counter(each.got for each in run.verdicts if each.result == "skipped")
    if reasons:
        yield f"- {peer.title}: {'; '.join(f'{reason} ({count})' for reason, count in reasons.most_common())}"


def _sections(side: str, runs: Runs) -> Iterator[str]:
    if not runs:
        return
    sections = sorted({each.section for _, run in runs for each in run.verdicts})
    head = (f"{side}s: section", *(peer.title for peer, _ in runs))
    yield from table(head, [(section, *(_cell(run, section) for _, run in runs)) for section in sections])
    yield ""


def _cell(run: Run, section: str) -> str:
    here = [each for each in run.verdicts if each.section == section]
    kept, bad = sum(each.result == "kept" for each in here), sum(each.is_bad for each in here)
    return f"{kept} / {bad}" if kept or bad else "-"


def _deviations(peer: Peer, run: Run) -> Iterator[str]:
    groups = found(peer, run)
    if not groups:
        return
    yield from (f"### {peer.title}", "")
    for slug, (cause, verdicts) in groups.items():
        levels = Counter(each.level for each in verdicts)
        counts = ", ".join(f"{levels[level]} {level}" for level in LEVELS if levels[level])
        yield f"- [{cause.title}](findings/{peer.name}/{slug}.md) ({counts})"
    yield ""


def _kills() -> Iterator[str]:
    yield from (
        "## How a back-end ends QEMU",
        "",
        "Each is `python -m tests.matrix.kills NAME`, once `vhu vm fetch` has run.",
        "",
    )
    rows = []
    for name, kill in KILLS.items():
        found = kills().get(name)
        link = f"[{name}](findings/qemu/{name}.md)" if found else name
        rows.append((link, kill.title, found.ended if found else "not run"))
    yield from (*table(("name", "what", "QEMU"), rows), "")
