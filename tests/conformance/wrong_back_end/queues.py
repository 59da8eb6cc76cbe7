"""Wrong about rings that run."""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

from vhostuser.conformance.back_end import hostile_rings
from vhostuser.errors import QueueBroken
from vhostuser.protocol.numbers import BackendRequest, FrontendRequest
from vhostuser.trace.event import Message
from vhostuser.trace.verdict import Verdict
from vhostuser.virtio.chain import DescriptorChain
from vhostuser.virtio.formats import ring_format
from vhostuser.virtio.numbers import Feature

from ..devices import Everything
from ..wrong import Wrong, calling, in_reply, in_request, leaving_at, put, silent_to, then_no_to, yes_to

Q, B = FrontendRequest, BackendRequest
SHORT = 0.3


def queue(change: Callable[[Any], None]) -> Wrong:
    """A back-end whose queues, in Python, have something changed."""

    def make(size: int, descriptors: Any, available: Any, used: Any, memory: Any, features: int, *, base: int) -> Any:
        form, indirect = ring_format(features), bool(features >> Feature.RING_INDIRECT_DESC & 1)
        made = form.device(size, descriptors, available, used, memory, base=base, indirect=indirect)
        change(made)
        return made

    return Wrong(queue=make, timeout=SHORT)


def pushing(wrong: Callable[[Callable[[DescriptorChain], None], DescriptorChain, int], None]) -> Wrong:
    """The same where only giving back is changed: `wrong` gets what would do it, the chain, and how many came before."""

    def change(made: Any) -> None:
        push, times = made.push, [0]

        def pushed(chain: DescriptorChain) -> None:
            times[0] += 1
            wrong(push, chain, times[0] - 1)

        made.push = pushed

    return queue(change)


def _other_head(push: Callable[[DescriptorChain], None], chain: DescriptorChain, before: int) -> None:
    chain.head ^= 1
    push(chain)


def _only_sixteen(push: Callable[[DescriptorChain], None], chain: DescriptorChain, before: int) -> None:
    if before < 16:
        push(chain)


def _only_the_first(push: Callable[[DescriptorChain], None], chain: DescriptorChain, before: int) -> None:
    if not before:
        push(chain)


def _late_again(push: Callable[[DescriptorChain], None], chain: DescriptorChain, before: int) -> None:
    push(chain)
    if before:
        push(chain)


def _quiet(made: Any) -> None:
    publish = made.publish
    made.publish = lambda: publish() and False


def _without_indirect(made: Any) -> None:
    made.indirect = False


def _fifteen_bits(made: Any) -> None:
    pop = made.pop
    made.pop = lambda: pop() if made.base & 0x8000 else None


def _all_broken() -> Wrong:
    """Once a queue is broken none of them works."""
    broken: list[bool] = []

    def change(made: Any) -> None:
        pop = made.pop

        def popped() -> DescriptorChain | None:
            try:
                return None if broken else pop()
            except QueueBroken:
                broken.append(True)
                raise

        made.pop = popped

    return queue(change)


class FirstBufferOnly(Everything):
    """Takes a request to be in one buffer."""

    def process(self, queue: int, chain: DescriptorChain) -> None:
        if chain.readable:
            chain.write(bytes(chain.readable[0])[:1])


def _signals_once() -> Wrong:
    """Signals an eventfd when it gets it, and never again."""

    def alter(sent: Message, fds: Sequence[int]) -> Verdict | None:
        if sent.asks and sent.request == Q.SET_VRING_CALL and fds:
            os.eventfd_write(fds[0], 1)
        return None

    return replace(queue(_quiet), alter=lambda: alter)


_QUIET = _signals_once()
_INDIRECT = queue(_without_indirect)
_FORMS = ("a_split_ring", "a_packed_ring")
_HOSTILE = (*hostile_rings.SPLIT_RINGS, *hostile_rings.INDIRECT_RINGS, *hostile_rings.PACKED_RINGS)

WRONG: dict[str, Wrong] = {
    **{f"requests_come_back_in_{form}": pushing(_other_head) for form in _FORMS},
    **{f"requests_go_round_in_{form}": pushing(_only_sixteen) for form in _FORMS},
    **{f"requests_may_be_in_pieces_in_{form}": Wrong(device=FirstBufferOnly) for form in _FORMS},
    **{f"requests_may_fill_{form}": pushing(_only_the_first) for form in _FORMS},
    **{f"kicks_may_be_spurious_in_{form}": pushing(_late_again) for form in _FORMS},
    **{f"the_driver_is_notified_of_{form}": _QUIET for form in _FORMS},
    **{f"indirect_tables_work_in_{form}": _INDIRECT for form in _FORMS},
    "available_indices_wrap_at_sixteen_bits": queue(_fifteen_bits),
    "an_indirect_table_may_follow_descriptors": _INDIRECT,
    "the_write_flag_of_an_indirect_descriptor_is_ignored": _INDIRECT,
    "the_driver_is_not_notified_if_it_does_not_want_to_be": queue(lambda made: None),
    "a_stopped_ring_tells_how_many_requests_were_taken": in_reply(Q.GET_VRING_BASE, put(4, 0, 4)),
    "calls_go_to_the_eventfd_that_was_set_last": replace(yes_to(Q.SET_VRING_CALL), timeout=SHORT),
    "a_ring_works_without_an_eventfd_for_calls": then_no_to(Q.SET_VRING_CALL),
    "a_ring_goes_on_after_a_new_memory_table": then_no_to(Q.SET_MEM_TABLE),
    "each_request_is_notified_without_event_idx": _QUIET,
    **{hostile_rings.hostile_rule(begins): silent_to(Q.GET_VRING_BASE) for begins, *_ in _HOSTILE},
    "a_broken_ring_is_told_of": replace(yes_to(Q.SET_VRING_ERR), timeout=SHORT),
    "a_broken_ring_leaves_the_connection": leaving_at(Q.GET_FEATURES, after=3),
    "a_broken_ring_may_be_set_up_anew": then_no_to(Q.SET_VRING_NUM),
    "a_broken_ring_leaves_the_others": _all_broken(),
    "a_kick_may_be_a_message": silent_to(Q.VRING_KICK),
    "a_call_is_a_message_where_there_is_no_eventfd": calling(B.VRING_CALL, B.VRING_ERR),
    "a_call_names_its_ring": in_request(B.VRING_CALL, put(0, 1, 4)),
    "a_kick_of_no_ring_is_refused": yes_to(Q.VRING_KICK),
    "a_kick_that_wants_a_reply_gets_it_once_the_work_is_done": yes_to(Q.VRING_KICK),
}
"""By the rule's name."""
