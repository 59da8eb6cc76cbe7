"""The reports of the ways in which a back-end ends QEMU, from the stored runs of tests.matrix.kills."""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass

from .finding import CHECKOUT
from .kills import KILLS
from .store import FINDINGS, RESULTS


@dataclass(frozen=True, slots=True)
class Killed:
    """How one of them ended."""

    date: str
    version: str
    ended: str
    said: str
    sent: list[str]


def kills() -> dict[str, Killed]:
    """Those that were run, by name."""
    try:
        found = json.loads((RESULTS / "kills.json").read_text())
    except FileNotFoundError:
        return {}
    return {name: Killed(**fields) for name, fields in found.items()}


def save_kill(name: str, killed: Killed) -> None:
    """Keep what came of one, beside the others."""
    whole = {**kills(), name: killed}
    texts = {each: asdict(whole[each]) for each in sorted(whole)}
    RESULTS.mkdir(parents=True, exist_ok=True)
    (RESULTS / "kills.json").write_text(json.dumps(texts, indent=1) + "\n")


def kill_report(name: str) -> str:
    """The report of one."""
    killed, kill = kills()[name], KILLS[name]
    lines = [f"# {name}: {kill.title}", ""]
    lines += [f"QEMU {killed.version}, {killed.date}. Written by `make matrix`: do not edit.", ""]
    lines += [f"**What.** {kill.what}", "", f"**QEMU** {killed.ended}.", ""]
    if killed.said:
        lines += ["It said:", "", "```", killed.said, "```", ""]
    lines += [f"**Effect.** {kill.effect}", "", "**The conversation**, from its end:", "", "```", *killed.sent, "```", ""]
    lines += [f"**To reproduce,** {CHECKOUT}:", ""]
    lines += ["```", f"vhu vm fetch && python -m tests.matrix.kills {name}", "```"]
    if (FINDINGS / "qemu" / f"{name}.pcapng").exists():
        lines += ["", f"Its capture, for `vhu read` and Wireshark: [{name}.pcapng]({name}.pcapng)"]
    return "\n".join(lines) + "\n"
