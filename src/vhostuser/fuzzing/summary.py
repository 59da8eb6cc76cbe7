"""What a campaign comes to: how much was said, how widely, and what was found."""

from __future__ import annotations

from ..protocol.rules import BACKEND, FRONTEND
from .campaign import HONEST, Campaign
from .mutations import MUTATIONS

_NAMES = {rule.name for rule in (*FRONTEND.values(), *BACKEND.values())}


def lines_of(campaign: Campaign, *, seed: int, restarts: int) -> list[str]:
    """For people."""
    fields = fields_of(campaign, seed=seed, restarts=restarts)
    names = {name for name, _ in campaign.covered}
    lines = [
        f"seed {seed}: {campaign.conversations} conversations, {campaign.messages} messages in {campaign.seconds:.1f} s"
        f" ({fields['messages_per_second']} messages/s), {restarts} restarts",
        f"covered: {len(names & _NAMES)} requests of {len(_NAMES)}, {fields['mutations']} mutations of {len(MUTATIONS)},"
        f" {fields['pairs']} pairs",
    ]
    if missing := sorted(_NAMES - names):
        lines.append(f"never said: {' '.join(missing)}")
    found = [f"  {each.kind.value} {each.last}: {each.count}" for each in campaign.findings]
    return [*lines, f"{len(campaign.findings) or 'no'} finding{'s' * (len(campaign.findings) != 1)}", *found]


def fields_of(campaign: Campaign, *, seed: int, restarts: int) -> dict[str, object]:
    """As an object."""
    pairs = {pair for pair in campaign.covered if pair[1] != HONEST}
    return {
        "seed": seed,
        "conversations": campaign.conversations,
        "messages": campaign.messages,
        "seconds": round(campaign.seconds, 3),
        "messages_per_second": round(campaign.messages / max(campaign.seconds, 1e-9)),
        "restarts": restarts,
        "mutations": len({mutation for _, mutation in pairs}),
        "pairs": len(pairs),
        "covered": _nested(campaign),
        "findings": len(campaign.findings),
    }


def _nested(campaign: Campaign) -> dict[str, dict[str, int]]:
    """Messages by request, then by mutation."""
    found: dict[str, dict[str, int]] = {}
    for (name, mutation), count in sorted(campaign.covered.items()):
        found.setdefault(name, {})[mutation] = count
    return found
