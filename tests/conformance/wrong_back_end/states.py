"""Wrong about the states of rings, and about what is logged."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

from vhostuser.protocol.numbers import FrontendRequest, VhostFeature
from vhostuser.protocol.payloads import VringAddr, VringState
from vhostuser.testing.files import message
from vhostuser.trace.event import Message
from vhostuser.trace.verdict import Verdict

from ..wrong import Wrong, deaf_to, replying, then_no_to, told, yes_to
from .queues import SHORT, queue

Q = FrontendRequest


def _soon(wrong: Wrong) -> Wrong:
    """What does not come does not have to be waited for for long."""
    return replace(wrong, timeout=SHORT)


def _behind_all(made: Any) -> None:
    made.base = made._available[1]


def _one_too_far(made: Any) -> None:
    made.base += bool(made.base)


def _bit(bit: int, *, there: bool) -> Callable[[bytes], bytes]:
    """Features with a bit set or not."""

    def change(data: bytes) -> bytes:
        features = int.from_bytes(data, "little") & ~(1 << bit) | there << bit
        return features.to_bytes(8, "little")

    return change


def _disabling_at_stop() -> Wrong:
    """Each ring that stops is disabled as well."""

    def alter(sent: Message, fds: Sequence[int]) -> Verdict | None:
        if not sent.asks or sent.request != Q.GET_VRING_BASE:
            return None
        index = VringState.unpack(sent.payload).index
        stop = message(Q.GET_VRING_BASE, sent.payload, flags=sent.flags)
        return Verdict("disabled, too", data=stop + message(Q.SET_VRING_ENABLE, VringState(index, 0), flags=1))

    return Wrong(lambda: alter)


def _addresses(**changes: int) -> Wrong:
    """A ring is told other addresses."""
    return told(Q.SET_VRING_ADDR, lambda data: replace(VringAddr.unpack(data), **changes).pack())


def _logged_at_the_ring() -> Wrong:
    """A ring's own address is taken for the log's."""

    def change(data: bytes) -> bytes:
        addresses = VringAddr.unpack(data)
        return replace(addresses, log=addresses.used).pack()

    return told(Q.SET_VRING_ADDR, change)


WRONG: dict[str, Wrong] = {
    "requests_that_wait_are_found_when_the_ring_starts": queue(_behind_all),
    "a_ring_needs_no_kick_to_start": queue(_behind_all),
    "a_stopped_ring_is_left_alone": replying(Q.GET_VRING_BASE, VringState(0, 1).pack()),
    "a_ring_goes_on_where_it_stopped": queue(_one_too_far),
    "rings_are_independent": then_no_to(Q.SET_VRING_NUM),
    "rings_are_enabled_where_protocol_features_are_not_agreed_on": _soon(
        told(Q.SET_FEATURES, _bit(VhostFeature.PROTOCOL_FEATURES, there=True))
    ),
    "a_ring_may_be_enabled_before_it_starts": _soon(deaf_to(Q.SET_VRING_ENABLE, 1)),
    "a_ring_stays_enabled_while_it_is_stopped": _soon(_disabling_at_stop()),
    "nothing_is_executed_in_a_disabled_ring": told(Q.SET_FEATURES, _bit(VhostFeature.PROTOCOL_FEATURES, there=False)),
    "a_ring_that_was_disabled_works_once_it_is_enabled": _soon(deaf_to(Q.SET_VRING_ENABLE, 3)),
    "what_a_disabled_ring_was_given_comes_back_once_it_is_enabled": _soon(deaf_to(Q.SET_VRING_ENABLE, 1)),
    "a_disabled_ring_may_get_another_eventfd": _soon(yes_to(Q.SET_VRING_CALL)),
    "what_a_device_writes_is_marked_in_the_log": _soon(told(Q.SET_FEATURES, _bit(VhostFeature.LOG_ALL, there=False))),
    "a_used_ring_is_marked_in_the_log": _soon(_addresses(flags=0)),
    "a_used_ring_is_marked_at_the_address_for_the_log": _soon(_logged_at_the_ring()),
    "nothing_is_marked_without_log_all": told(Q.SET_FEATURES, _bit(VhostFeature.LOG_ALL, there=True)),
}
"""By the rule's name."""
