"""`vhu explain`: what a message, a feature bit, a raw header or a rule means, and where the specification says so."""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterator, Mapping
from difflib import get_close_matches
from importlib import import_module
from typing import Final

from ..limited_log import printable
from ..protocol.dialects import DIALECTS, RELEASED, Dialect, meanings
from ..protocol.numbers import ADVISED, REQUIRES, ProtocolFeature, VhostFeature, protocol_feature_names
from ..protocol.rules import RULES, Channel, Gate, PayloadType, Rule
from ..trace.words import layout_of, shown
from ..virtio.numbers import Feature, feature_names
from .arguments import Parser, number
from .outcome import CommandError, Exit, put
from .raw import Meaning, raw_bytes, raw_meanings

PROGRAM: Final = "vhu explain"
_HIGHEST_BIT: Final = 63
_BIT: Final = re.compile(r"BIT_([0-9]{1,2})")
_PREFIXES: Final = (
    "VHOST_USER_PROTOCOL_F_",
    "VHOST_USER_BACKEND_",
    "VHOST_USER_SLAVE_",
    "VHOST_USER_F_",
    "VHOST_USER_",
    "VHOST_F_",
    "VIRTIO_F_",
    "VIRTIO_",
)


def explain(arguments: list[str]) -> int:
    """Run `vhu explain`; its exit code."""
    parser = Parser(PROGRAM, "Say what a message, a feature bit, a request number, the bytes of a message or a rule mean.")
    parser.add_argument("--json", action="store_true", help="one JSON object")
    what = "a name (SHMEM_MAP), a word in names or a pattern (SET_VRING_*), a bit (BIT_22) or request number (22, 0x16), "
    what += "a mask of features, a message's bytes in hexadecimal"
    parser.add_argument("query", nargs="+", metavar="NAME|BIT|HEX|RULE", help=f"{what}, or a rule of vhu check")
    options = parser.parse_args(arguments)
    query = " ".join(options.query)
    found, words = meanings_of(query), _words
    if not found:
        rules, search = (import_module(f"{__package__}.{name}") for name in ("explain_rule", "explain_search"))
        if (entry := rules.entry(query)) is None and (matches := search.matches(_bare(query.replace(" ", "_")))):
            put(json.dumps(search.fields(query, matches)) if options.json else search.page(query, matches))
            return Exit.DONE
        found, words = _rule(query, entry, rules.near), lambda meaning: str(rules.page(query))
    put(json.dumps({"query": query, "meanings": found}) if options.json else "\n\n".join(map(words, found)))
    return Exit.DONE


def _rule(query: str, entry: Meaning | None, near: Callable[[str], list[str]]) -> list[Meaning]:
    if entry is None:
        raise _unknown(query, near(query))
    return [entry]


def meanings_of(query: str) -> list[Meaning]:
    """All that a name, a number or bytes may mean; none if nothing."""
    if (data := raw_bytes(query)) is not None:
        return raw_meanings(data)
    try:
        value = number(query)
    except ValueError:
        return list(_named(query))
    return list(_numbered(value))


def _numbered(value: int) -> Iterator[Meaning]:
    yield from _features(value)
    for channel in Channel:
        if value in RULES[channel]:
            yield _request(RULES[channel][value])
    for dialect in DIALECTS.values():
        if not dialect.speakable and value in (dialect.map_id, dialect.unmap_id, dialect.config_id):
            yield _dialect_request(dialect, value)
    if _HIGHEST_BIT < value < 1 << 64:
        yield _mask(value)


def _features(bit: int) -> Iterator[Meaning]:
    """What a bit is among protocol features, and among those of the device."""
    if known := meanings(bit):
        yield _protocol_feature(bit, known)
    if (name := _virtio_name(bit)) is not None:
        yield _feature_bit(bit, name)


def _named(query: str) -> Iterator[Meaning]:
    name = _bare(query)
    if written := _BIT.fullmatch(name):
        yield from _features(int(written[1]))
    for channel in Channel:
        for rule in RULES[channel].values():
            if rule.name == name:
                yield _request(rule)
    for feature in ProtocolFeature:
        if feature.name == name:
            yield _protocol_feature(feature, meanings(feature))
    for bit in range(64):
        if _virtio_name(bit) == name:
            yield _feature_bit(bit, name)
    if query.lower() in DIALECTS:
        yield _dialect(DIALECTS[query.lower()])


def _bare(query: str) -> str:
    """The name without the prefix that C code gives it."""
    name = query.strip().upper().replace("-", "_")
    prefix = next((prefix for prefix in _PREFIXES if name.startswith(prefix)), "")
    return name.removeprefix(prefix)


def _unknown(query: str, rules: list[str]) -> CommandError:
    names = [rule.name for rules in RULES.values() for rule in rules.values()]
    names += [*ProtocolFeature.__members__, *Feature.__members__, *VhostFeature.__members__]
    near = get_close_matches(_bare(query), names, 3, 0.5) + get_close_matches(query.lower(), DIALECTS, 1, 0.7)
    near += rules
    advice = (
        f"did you mean {' or '.join(dict.fromkeys(near))}?" if near else "try: SHMEM_MAP, 22, or 12 bytes in hexadecimal"
    )
    return CommandError(f"nothing is known by {query[:80]!a}", advice, Exit.USAGE)


def _mask(value: int) -> Meaning:
    return {
        "kind": "64 feature bits",
        "name": hex(value),
        "virtio_features": sorted(feature_names(value)),
        "protocol_features": sorted(protocol_feature_names(value)),
    }


def _virtio_name(bit: int) -> str | None:
    for kind in (Feature, VhostFeature):
        if bit in list(kind):
            return kind(bit).name
    return None


def _request(rule: Rule) -> Meaning:
    number_of = {"SHMEM_MAP": "map_id", "SHMEM_UNMAP": "unmap_id", "GET_SHMEM_CONFIG": "config_id"}.get(rule.name)
    numbers = [f"{getattr(row, number_of)} ({row.spoken_by})" for row in _older()] if number_of else []
    return {
        "kind": "request",
        "name": rule.name,
        "channel": rule.channel.value,
        "id": rule.id,
        "section": rule.section,
        "payload": _payload(rule.payload),
        "fds": rule.fds.value,
        "reply": rule.reply.value,
        "reply_payload": _payload(rule.answer),
        "gate": _gate(rule),
        **({"other_numbers": numbers} if numbers else {}),
    }


def _older() -> list[Dialect]:
    return [dialect for dialect in DIALECTS.values() if not dialect.speakable and dialect.map_id != RELEASED.map_id]


def _payload(payload: PayloadType) -> Meaning | None:
    if payload is None:
        return None
    sizes = sorted({min(payload.SIZES), max(payload.SIZES)})
    return {
        "name": payload.__name__,
        "sizes": sizes,
        "fields": [field._asdict() for field in layout_of(payload)],
    }


def _gate(rule: Rule) -> str:
    gate = rule.gate
    if gate is None:
        return "none"
    offered = " offered" if rule.if_offered else ""
    return gate.value if isinstance(gate, Gate) else f"protocol feature {gate.name} (bit {int(gate)}){offered}"


def _protocol_feature(bit: int, known: list[str]) -> Meaning:
    released = ProtocolFeature(bit) if bit in list(ProtocolFeature) else None
    gated = [rule.name for rules in RULES.values() for rule in rules.values() if released and rule.gate == released]
    return {
        "kind": "protocol feature",
        "name": released.name if released else f"bit {bit}, without a name in the specification",
        "bit": bit,
        "section": "Protocol features",
        "requires": [each.name for each in REQUIRES.get(released, ())] if released else [],
        "advised": [each.name for each in ADVISED.get(released, ())] if released else [],
        "gates": gated,
        "elsewhere": known[1:] if released else known,
    }


def _feature_bit(bit: int, name: str) -> Meaning:
    vhost = bit in list(VhostFeature)
    section = "Front-end message types: VHOST_USER_GET_FEATURES" if vhost else "VIRTIO: Reserved Feature Bits"
    return {"kind": "vhost feature bit" if vhost else "virtio feature bit", "name": name, "bit": bit, "section": section}


def _dialect(dialect: Dialect) -> Meaning:
    return {
        "kind": "dialect of shared memory",
        "name": dialect.name,
        "bit": dialect.bit,
        "ids": {"SHMEM_MAP": dialect.map_id, "SHMEM_UNMAP": dialect.unmap_id, "GET_SHMEM_CONFIG": dialect.config_id},
        "spoken_by": dialect.spoken_by,
        "map_payload": _payload(dialect.map_layout),
        "map_flags": f"write {dialect.flags.write:#x}" + (f", read {dialect.flags.read:#x}" if dialect.flags.read else ""),
        "config_payload": dialect.config_layout,
        "speakable": dialect.speakable,
    }


def _dialect_request(dialect: Dialect, value: int) -> Meaning:
    name, channel, payload = {
        dialect.map_id: ("SHMEM_MAP", Channel.BACKEND, _payload(dialect.map_layout)),
        dialect.unmap_id: ("SHMEM_UNMAP", Channel.BACKEND, _payload(dialect.unmap_layout)),
        dialect.config_id: ("GET_SHMEM_CONFIG", Channel.FRONTEND, None),
    }[value]
    return {
        "kind": "request of another dialect",
        "name": name,
        "dialect": dialect.name,
        "channel": channel.value,
        "id": value,
        "spoken_by": dialect.spoken_by,
        "payload": payload if payload or value != dialect.config_id else {"name": dialect.config_layout, "fields": []},
    }


def _words(meaning: Meaning) -> str:
    """One meaning for people: a heading, then a line each."""
    lines = [f"{meaning['name']}: {meaning['kind']}"]
    for key, value in meaning.items():
        if key in ("name", "kind") or value in ([], {}):
            continue
        lines.extend(_entry(key.replace("_", " "), value))
    return "\n".join(map(printable, lines))


def _entry(key: str, value: object) -> Iterator[str]:
    if isinstance(value, Mapping) and "fields" in value:
        sizes = value.get("sizes")
        size = f", {' to '.join(map(str, sizes))} bytes" if isinstance(sizes, list) else ""
        yield f"  {key + ': ':18}{value['name']}{size}"
        for field in value["fields"]:
            yield f"    {field['offset']:4}  {field['type']:8} {field['name']}" + (
                f" = {field['value']}" if "value" in field else ""
            )
    elif isinstance(value, list):
        yield f"  {key + ': ':18}{', '.join(shown(each) for each in value)}"
    else:
        yield f"  {key + ': ':18}{'none' if value is None else shown(value)}"
