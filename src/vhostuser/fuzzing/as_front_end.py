"""What a hostile front-end says: the n-th conversation of a seed with a back-end that offers this."""

from __future__ import annotations

from collections.abc import Callable
from random import Random

from ..conformance.backend_bench import Offer
from ..protocol.rules import FRONTEND
from .act import Act, Conversation
from .mutations import MANNERS, mutated
from .valid import conversation, plausible


def front_end_conversations(seed: int, offer: Offer) -> Callable[[int], Conversation]:
    """A function from a number to a conversation, the same for the same seed and offer."""

    def more(random: Random) -> Act:
        return plausible(random, offer, random.choice(tuple(FRONTEND)))

    def make(number: int) -> Conversation:
        random = Random(f"{seed}/{number}")
        acts = mutated(random, more, conversation(random, offer))
        return Conversation(number, tuple(acts), random.choice(MANNERS))

    return make
