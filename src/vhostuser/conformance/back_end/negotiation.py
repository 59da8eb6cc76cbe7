"""Rules about how features are agreed on, and who owns the device."""

from __future__ import annotations

from typing import Final

from ...protocol.numbers import ADVISED, REQUIRES, FrontendRequest, ProtocolFeature, VhostFeature, mask
from ...protocol.payloads import U64
from ...virtio.numbers import Feature
from ..backend_bench import BACK_END, BackendBench
from ..family import declare
from ..outcome import Deviation, NotApplicable
from ..rule import Level

F, Q = ProtocolFeature, FrontendRequest
NEGOTIATION: Final = "Protocol features"


def _constant(request: FrontendRequest) -> None:
    def check(bench: BackendBench) -> None:
        if request == Q.GET_PROTOCOL_FEATURES:
            _need_protocol_features(bench)
        first, second = bench.value(request), bench.value(request)
        if first != second:
            raise Deviation(f"the same answer to {request.name} twice", f"{first:#x}, then {second:#x}")

    name, text = request.name.lower(), f"{request.name} has the same answer each time it is asked on a connection."
    declare(BACK_END, f"VHOST_USER_{request.name}", f"{name}_has_the_same_answer_each_time", text, check, level=Level.SHOULD)


for _request in (Q.GET_FEATURES, Q.GET_PROTOCOL_FEATURES):
    _constant(_request)


@BACK_END.rule("VHOST_USER_GET_PROTOCOL_FEATURES")
def protocol_features_are_told_before_set_features(bench: BackendBench) -> None:
    """GET_PROTOCOL_FEATURES is answered before SET_FEATURES was called, if GET_FEATURES has bit 30."""
    _need_protocol_features(bench)
    bench.value(Q.GET_PROTOCOL_FEATURES)


@BACK_END.rule("VHOST_USER_SET_PROTOCOL_FEATURES")
def protocol_features_are_taken_before_set_features(bench: BackendBench) -> None:
    """A back-end that reports bit 30 takes SET_PROTOCOL_FEATURES even before SET_FEATURES was called."""
    _need_protocol_features(bench)
    bench.ignored(Q.SET_PROTOCOL_FEATURES, U64(bench.offer.protocol & 1 << F.REPLY_ACK))


@BACK_END.rule("VHOST_USER_SET_PROTOCOL_FEATURES", protocol=[F.REPLY_ACK])
def reply_ack_counts_at_once(bench: BackendBench) -> None:
    """Once REPLY_ACK is acknowledged, a request with need_reply is acknowledged, SET_FEATURES not being there yet."""
    _need_protocol_features(bench)
    bench.value(Q.GET_PROTOCOL_FEATURES)
    bench.request(Q.SET_PROTOCOL_FEATURES, U64(1 << F.REPLY_ACK))
    bench.protocol_acknowledged = 1 << F.REPLY_ACK
    bench.accepted(Q.SET_OWNER)


@BACK_END.rule("VHOST_USER_SET_FEATURES")
def set_features_may_come_again(bench: BackendBench) -> None:
    """SET_FEATURES may come again, as it does when logging begins or ends."""
    bench.agree()
    bench.accepted(Q.SET_FEATURES, U64(bench.acknowledged))


@BACK_END.rule("VHOST_USER_SET_FEATURES", level=Level.SHOULD, protocol=[F.REPLY_ACK])
def features_that_were_not_offered_are_refused(bench: BackendBench) -> None:
    """SET_FEATURES is a subset of what GET_FEATURES said."""
    bench.agree()
    bench.refused(Q.SET_FEATURES, U64(bench.acknowledged | _not_offered(bench.offer.features)))


@BACK_END.rule("VHOST_USER_SET_PROTOCOL_FEATURES", level=Level.SHOULD, protocol=[F.REPLY_ACK])
def protocol_features_that_were_not_offered_are_refused(bench: BackendBench) -> None:
    """SET_PROTOCOL_FEATURES is a subset of what GET_PROTOCOL_FEATURES said."""
    bench.agree()
    bench.refused(Q.SET_PROTOCOL_FEATURES, U64(bench.protocol_acknowledged | _not_offered(bench.offer.protocol)))


@BACK_END.rule("VHOST_USER_SET_OWNER")
def the_device_can_be_owned(bench: BackendBench) -> None:
    """SET_OWNER is taken."""
    bench.agree(own=False)
    bench.accepted(Q.SET_OWNER)


@BACK_END.rule("VHOST_USER_RESET_OWNER", level=Level.SHOULD)
def reset_owner_is_survived(bench: BackendBench) -> None:
    """RESET_OWNER is deprecated; it is recommended that back-ends ignore it, or disable the rings."""
    bench.agree()
    bench.ignored(Q.RESET_OWNER)


@BACK_END.rule(NEGOTIATION, level=Level.ADVICE)
def virtio_1_is_offered(bench: BackendBench) -> None:
    """A back-end offers VERSION_1: no other device is specified any more."""
    if not bench.value(Q.GET_FEATURES) >> Feature.VERSION_1 & 1:
        raise Deviation("feature bit 32, VERSION_1, offered", "features without it")


@BACK_END.rule(NEGOTIATION, level=Level.ADVICE)
def protocol_features_are_offered(bench: BackendBench) -> None:
    """A back-end offers bit 30, PROTOCOL_FEATURES: without it there is no acknowledgement and no second queue."""
    if not bench.value(Q.GET_FEATURES) >> VhostFeature.PROTOCOL_FEATURES & 1:
        raise Deviation("feature bit 30, PROTOCOL_FEATURES, offered", "features without it")


@BACK_END.rule("Multiple queue support", level=Level.SHOULD)
def mq_is_offered(bench: BackendBench) -> None:
    """Back-ends should always implement MQ, even for a fixed number of queues, so that it can be told."""
    _offered(bench, F.MQ)


@BACK_END.rule(NEGOTIATION, level=Level.ADVICE)
def reply_ack_is_offered(bench: BackendBench) -> None:
    """A back-end offers REPLY_ACK: without it nobody knows what failed."""
    _offered(bench, F.REPLY_ACK)


@BACK_END.rule(NEGOTIATION, level=Level.ADVICE)
def no_protocol_feature_is_offered_that_has_no_meaning(bench: BackendBench) -> None:
    """Protocol features above the last one that is specified are not offered."""
    _need_protocol_features(bench)
    known = mask(F)
    if unknown := bench.value(Q.GET_PROTOCOL_FEATURES) & ~known:
        raise Deviation(f"protocol features within {known:#x}", f"{unknown:#x} besides")


@BACK_END.rule("Multiple queue support", protocol=[F.MQ], level=Level.SHOULD)
def there_is_a_queue_and_no_more_than_256(bench: BackendBench) -> None:
    """GET_QUEUE_NUM tells how many queues there may be; an index of a ring has eight bits in SET_VRING_KICK."""
    bench.agree()
    queues = bench.value(Q.GET_QUEUE_NUM)
    if not 1 <= queues <= 256:
        raise Deviation("1 to 256 queues", str(queues))


@BACK_END.rule("Multiple queue support", protocol=[F.MQ], level=Level.SHOULD)
def the_number_of_queues_stays(bench: BackendBench) -> None:
    """GET_QUEUE_NUM has the same answer each time it is asked on a connection."""
    bench.agree()
    first, second = bench.value(Q.GET_QUEUE_NUM), bench.value(Q.GET_QUEUE_NUM)
    if first != second:
        raise Deviation("the same number of queues twice", f"{first}, then {second}")


@BACK_END.rule("In-band notifications", protocol=[F.INBAND_NOTIFICATIONS], level=Level.SHOULD)
def in_band_notifications_without_what_they_need_end_the_connection(bench: BackendBench) -> None:
    """INBAND_NOTIFICATIONS without BACKEND_REQ and REPLY_ACK: there is no way to go on, the connection is dropped."""
    _need_protocol_features(bench)
    bench.request(Q.SET_PROTOCOL_FEATURES, U64(1 << F.INBAND_NOTIFICATIONS))
    bench.ends("INBAND_NOTIFICATIONS alone")


def _requirement(feature: ProtocolFeature, needed: ProtocolFeature, level: Level) -> None:
    def check(bench: BackendBench) -> None:
        _need_protocol_features(bench)
        offered = bench.value(Q.GET_PROTOCOL_FEATURES)
        if offered >> feature & 1 and not offered >> needed & 1:
            raise Deviation(f"{needed.name} offered with {feature.name}", f"protocol features {offered:#x}")

    word = "makes no sense without" if level is Level.SHOULD else "is safe only with"
    name = f"{feature.name.lower()}_is_not_offered_without_{needed.name.lower()}"
    declare(BACK_END, NEGOTIATION, name, f"{feature.name} {word} {needed.name}.", check, level=level)


for _level, _table in ((Level.SHOULD, REQUIRES), (Level.ADVICE, ADVISED)):
    for _feature, _needs in _table.items():
        for _needed in _needs:
            _requirement(_feature, _needed, _level)


def _offered(bench: BackendBench, feature: ProtocolFeature) -> None:
    _need_protocol_features(bench)
    if not bench.value(Q.GET_PROTOCOL_FEATURES) >> feature & 1:
        raise Deviation(f"protocol feature {feature.name} offered", "protocol features without it")


def _need_protocol_features(bench: BackendBench) -> None:
    if not bench.value(Q.GET_FEATURES) >> VhostFeature.PROTOCOL_FEATURES & 1:
        raise NotApplicable("it does not offer PROTOCOL_FEATURES")


def _not_offered(offered: int) -> int:
    """The lowest bit from 40 on that is not offered: none of them changes what a back-end reads next."""
    return next(1 << bit for bit in range(40, 64) if not offered >> bit & 1)
