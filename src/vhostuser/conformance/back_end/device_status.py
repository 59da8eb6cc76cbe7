"""Rules about the device's status and its reset."""

from __future__ import annotations

from typing import Final

from ...protocol.numbers import FrontendRequest, ProtocolFeature
from ...protocol.payloads import U64
from ...virtio.numbers import Status
from ..backend_bench import BACK_END, BackendBench
from ..family import declare
from ..outcome import Deviation
from ..ring import Ring, begin
from ..rule import Level

F, Q = ProtocolFeature, FrontendRequest
PAUSE: Final = 0.1
"""Seconds in which nothing has to happen."""
STATUSES: Final = {
    "acknowledge": Status.ACKNOWLEDGE,
    "driver": Status.ACKNOWLEDGE | Status.DRIVER,
    "features_ok": Status.ACKNOWLEDGE | Status.DRIVER | Status.FEATURES_OK,
    "driver_ok": Status.ACKNOWLEDGE | Status.DRIVER | Status.FEATURES_OK | Status.DRIVER_OK,
}


def _kept(word: str, status: Status) -> None:
    def check(bench: BackendBench) -> None:
        bench.agree()
        bench.accepted(Q.SET_STATUS, U64(status))
        got = bench.value(Q.GET_STATUS)
        if got & ~Status.NEEDS_RESET != status:
            raise Deviation(f"status {int(status):#x}, as it was set", f"{got:#x}")

    text = "GET_STATUS answers with the status that SET_STATUS has set."
    name = f"a_status_of_{word}_is_told_as_it_was_set"
    declare(BACK_END, "VHOST_USER_GET_STATUS", name, text, check, protocol=[F.STATUS])


for _word, _status in STATUSES.items():
    _kept(_word, _status)


@BACK_END.rule("VHOST_USER_GET_STATUS", protocol=[F.STATUS], level=Level.SHOULD)
def the_status_begins_at_zero(bench: BackendBench) -> None:
    """A device that nobody has touched has status 0."""
    bench.agree()
    if got := bench.value(Q.GET_STATUS):
        raise Deviation("status 0 at the beginning", f"{got:#x}")


@BACK_END.rule("VHOST_USER_SET_STATUS", protocol=[F.STATUS])
def status_zero_resets_the_device(bench: BackendBench) -> None:
    """Status 0 resets the device; its status is 0 after that."""
    bench.agree()
    bench.accepted(Q.SET_STATUS, U64(Status.ACKNOWLEDGE | Status.DRIVER))
    bench.accepted(Q.SET_STATUS, U64(0))
    if got := bench.value(Q.GET_STATUS):
        raise Deviation("status 0 after a reset", f"{got:#x}")


@BACK_END.rule("VHOST_USER_SET_STATUS", protocol=[F.STATUS, F.REPLY_ACK], level=Level.ADVICE)
def a_status_of_more_than_eight_bits_is_refused(bench: BackendBench) -> None:
    """The device status has eight bits."""
    bench.agree()
    bench.refused(Q.SET_STATUS, U64(0x100))


@BACK_END.rule("VHOST_USER_RESET_DEVICE", protocol=[F.RESET_DEVICE])
def a_device_is_reset_before_anything_is_set_up(bench: BackendBench) -> None:
    """RESET_DEVICE of a device that does nothing does nothing."""
    bench.agree()
    bench.accepted(Q.RESET_DEVICE)
    bench.alive()


@BACK_END.rule("VHOST_USER_RESET_DEVICE", protocol=[F.RESET_DEVICE])
def rings_may_be_set_up_again_after_a_reset(bench: BackendBench) -> None:
    """RESET_DEVICE disables all rings and resets the device, which may be set up again on the same connection."""
    bench.agree()
    for _ in range(2):
        bench.share_memory()
        bench.set_up_queue(0)
        bench.accepted(Q.RESET_DEVICE)
        bench.accepted(Q.SET_FEATURES, U64(bench.acknowledged))


@BACK_END.rule("VHOST_USER_RESET_DEVICE", protocol=[F.RESET_DEVICE, F.STATUS])
def a_reset_sets_the_status_to_zero(bench: BackendBench) -> None:
    """RESET_DEVICE brings the device to its initial state, with status 0."""
    bench.agree()
    bench.accepted(Q.SET_STATUS, U64(Status.ACKNOWLEDGE))
    bench.accepted(Q.RESET_DEVICE)
    if got := bench.value(Q.GET_STATUS):
        raise Deviation("status 0 after a reset", f"{got:#x}")


@BACK_END.rule("VHOST_USER_RESET_DEVICE", protocol=[F.RESET_DEVICE])
def a_ring_that_was_reset_is_stopped(bench: BackendBench) -> None:
    """After RESET_DEVICE a ring is stopped: nothing is taken from it any more."""
    begin(bench)
    ring = Ring(bench)
    ring.exchange()
    bench.accepted(Q.RESET_DEVICE)
    ring.offer(*ring.buffers())
    bench.comes_within(PAUSE)
    if ring.used_index != 1:
        raise Deviation("nothing taken from a ring that was reset", "a chain given back")
