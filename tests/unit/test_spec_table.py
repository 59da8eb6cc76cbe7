"""The package's tables against the specification's, row by row: nothing here is typed a second time."""

from __future__ import annotations

import re

import pytest

from tests.spec_table import FEATURES, PAYLOADS, REQUESTS, TABLES, FeatureRow, PayloadRow, RequestRow, class_of
from vhostuser.protocol import numbers
from vhostuser.protocol.numbers import ADVISED, REQUIRES, ProtocolFeature, VhostFeature
from vhostuser.protocol.payloads import HEADER
from vhostuser.protocol.rules import BACKEND, FRONTEND, RULES, Channel, Rule, rule_named

requests = pytest.mark.parametrize("row", REQUESTS, ids=lambda row: f"{row.channel.value} {row.name}")
features = pytest.mark.parametrize("row", FEATURES, ids=lambda row: row.name)
payload_rows = pytest.mark.parametrize(
    "row", [PAYLOADS[name] for name in PAYLOADS if name != "header"], ids=lambda row: row.name
)


def rule_of(row: RequestRow) -> Rule:
    return RULES[row.channel][row.id]


def test_the_tables_have_as_many_rows_as_the_specification() -> None:
    assert (len(FRONTEND), len(BACKEND)) == (len(TABLES["frontend_requests"]), len(TABLES["backend_requests"])) == (44, 10)
    assert len(ProtocolFeature) == len(FEATURES) == 23


@requests
def test_request_has_its_number_and_name(row: RequestRow) -> None:
    rule = rule_of(row)
    assert (rule.id, rule.name, rule.channel) == (row.id, row.name, row.channel)
    assert rule_named(row.channel, row.name) is rule
    assert rule.section.endswith(("VHOST_USER_BACKEND_" if row.channel is Channel.BACKEND else "VHOST_USER_") + row.name)


@requests
def test_request_has_its_payload_and_variants(row: RequestRow) -> None:
    rule, types = rule_of(row), row.payload_types()
    for feature in (None, *ProtocolFeature):
        wanted = types.get(feature, types[None])
        assert rule.payload_under(0 if feature is None else 1 << feature) is wanted


@requests
def test_request_has_its_reply(row: RequestRow) -> None:
    rule = rule_of(row)
    assert rule.reply is row.reply()
    assert rule.answer in row.answer_types()


@requests
def test_reply_may_bring_its_fds_and_no_more(row: RequestRow) -> None:
    counts = {int(count) for count in re.findall(r"\d", row.answer_fds)}
    allowed = set(rule_of(row).answer_fds)
    assert counts <= allowed
    assert max(allowed) == max(counts)


@requests
def test_request_has_its_gate(row: RequestRow) -> None:
    assert rule_of(row).gate is row.gate()


@features
def test_feature_has_its_number(row: FeatureRow) -> None:
    assert ProtocolFeature[row.name] == row.bit
    assert numbers.protocol_feature_names(1 << row.bit) == {row.name}


@features
def test_feature_requires_what_the_text_says(row: FeatureRow) -> None:
    feature = ProtocolFeature(row.bit)
    assert set(REQUIRES.get(feature, ())) == row.requires
    assert set(ADVISED.get(feature, ())) == row.advised


@features
def test_feature_gates_the_requests_that_the_text_names(row: FeatureRow) -> None:
    words = set(re.findall(r"[A-Z]+", row.gates))
    gated = [rule for rules in RULES.values() for rule in rules.values() if rule.gate is ProtocolFeature(row.bit)]
    for rule in gated:
        assert "*" in row.gates or set(rule.name.split("_")) <= words


def test_missing_requirements_names_each_pair() -> None:
    for feature, needs in REQUIRES.items():
        assert numbers.missing_requirements(1 << feature) == [(feature, need) for need in needs]
        assert numbers.missing_requirements(numbers.mask((feature, *needs, *ProtocolFeature))) == []


def test_feature_names_of_unknown_bits() -> None:
    assert numbers.protocol_feature_names(1 << 23 | 1 << 63) == {"BIT_23", "BIT_63"}
    assert numbers.bits(0b1010) == [1, 3]


def test_header_is_laid_out_as_the_text_says() -> None:
    fields = {field.name: field.offset for field in PAYLOADS["header"].fields}
    packed = HEADER.pack(0x01010101, 0x02020202, 0x03030303)
    assert len(packed) == numbers.HEADER_SIZE == TABLES["header"]["size"] == PAYLOADS["header"].sizes()[0]
    assert [packed[fields[name]] for name in ("request", "flags", "size")] == [1, 2, 3]


def test_header_flags_are_those_of_the_text() -> None:
    flags = TABLES["header"]["flags"]
    first, last, version = (int(number) for number in re.findall(r"\d+", flags["version_bits"]))
    lowest, highest = (int(number) for number in re.findall(r"\d+", flags["reserved"]))
    assert (numbers.mask(range(first, last + 1)), version) == (numbers.VERSION_MASK, numbers.VERSION)
    assert (flags["reply"], flags["need_reply"]) == (numbers.REPLY, numbers.NEED_REPLY)
    assert numbers.mask(range(lowest, highest + 1)) == numbers.KNOWN_FLAGS ^ 0xFFFFFFFF


def test_vhost_features_are_those_of_the_text() -> None:
    bits = TABLES["virtio_feature_bit"]
    assert (bits["VHOST_USER_F_PROTOCOL_FEATURES"], bits["VHOST_F_LOG_ALL"]) == (
        VhostFeature.PROTOCOL_FEATURES,
        VhostFeature.LOG_ALL,
    )


@payload_rows
def test_payload_has_its_sizes(row: PayloadRow) -> None:
    assert tuple(class_of(row.name).SIZES) == row.sizes()
    if row.xen_sizes():
        assert tuple(class_of(f"{row.name}_xen").SIZES) == row.xen_sizes()


@payload_rows
def test_payload_has_its_fields_at_their_offsets(row: PayloadRow) -> None:
    declared = {field.name: (field.type, field.offset) for field in getattr(class_of(row.name), "FIELDS", ())}
    for field in row.fields:
        if field.name in declared and not field.array:
            assert declared.pop(field.name) == (field.element, field.offset)
        elif field.name in declared:
            assert declared.pop(field.name) == (f"{field.element}[{field.array}]", field.offset)
        elif field.name == "region":
            for inner in PAYLOADS[field.element].fields:
                assert declared.pop(inner.name) == (inner.element, field.offset + inner.offset)
    assert not declared
