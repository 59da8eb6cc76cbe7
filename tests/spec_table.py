"""The protocol as the specification's text has it (data/vhost_user_messages.json), its words made into expectations."""

from __future__ import annotations

import json
import re
from dataclasses import dataclass
from pathlib import Path
from struct import Struct
from typing import Final

from vhostuser.protocol import payloads
from vhostuser.protocol.layout import Payload
from vhostuser.protocol.numbers import MAX_PAYLOAD, MAX_REGIONS, ProtocolFeature
from vhostuser.protocol.rules import Channel, Gate, PayloadType, Reply

TABLES: Final = json.loads((Path(__file__).parent / "data" / "vhost_user_messages.json").read_text())
XEN: Final = "_xen"
CODES: Final = {"u8": "B", "u16": "H", "u32": "I", "u64": "Q"}


def class_of(name: str) -> type[Payload]:
    """The class of a payload that the table calls `vring_state` or `memory_region_xen`."""
    stem, prefix = (name.removesuffix(XEN), "Xen") if name.endswith(XEN) else (name, "")
    found: type[Payload] = getattr(payloads, prefix + "".join(word.capitalize() for word in stem.split("_")))
    return found


@dataclass(frozen=True, slots=True)
class FieldRow:
    """One field of a payload: an integer, an array of integers, or one or many payloads."""

    name: str
    type: str
    offset: int

    @property
    def is_padding(self) -> bool:
        return "padding" in self.name

    @property
    def array(self) -> str:
        """What stands between the brackets: a number or the name of a field; empty if it is no array."""
        found = re.search(r"\[(\w+)\]", self.type)
        return found[1] if found else ""

    @property
    def element(self) -> str:
        return re.split(r"[\[ ]", self.type)[0]


@dataclass(frozen=True, slots=True)
class PayloadRow:
    name: str
    fields: tuple[FieldRow, ...]
    words: str

    def sizes(self) -> tuple[int, ...]:
        """Every size that the words allow: `40 (xen 48)`, `8+32*n (n<=8: …)`, `12+size (… cap 256: …)`."""
        if "implementation" in self.words:
            return tuple(range(MAX_PAYLOAD + 1))
        return _sizes_in(self.words)

    def xen_sizes(self) -> tuple[int, ...]:
        """The same under XEN_MMAP; empty if that changes nothing."""
        found = re.search(r"xen ([^)]+)", self.words)
        return _sizes_in(found[1]) if found else ()


def _sizes_in(words: str) -> tuple[int, ...]:
    if many := re.match(r"(\d+)\+(\d+)\*n", words):
        return tuple(int(many[1]) + int(many[2]) * count for count in range(1, MAX_REGIONS + 1))
    if (open_ := re.match(r"(\d+)\+size", words)) and (cap := re.search(r"cap (\d+)", words)):
        return tuple(range(int(open_[1]), int(open_[1]) + int(cap[1]) + 1))
    return (int(re.findall(r"\d+", words)[0]),)


PAYLOADS: Final = {
    name: PayloadRow(name, tuple(FieldRow(**field) for field in row.get("fields", ())), str(row["size"]))
    for name, row in TABLES["payloads"].items()
}


def encode(name: str, payload: Payload, padding: int = 0) -> bytes:
    """`payload` as the table lays it out, written with nothing of the package; padding bytes are `padding`."""
    row, out = PAYLOADS[name], bytearray()
    for field in row.fields:
        out += bytes([padding]) * (field.offset - len(out))
        if field.is_padding:
            width = int(field.array or 1) * Struct(CODES[field.element]).size
            out += bytes([padding]) * width
        else:
            out += _encode_field(field, payload)
    return bytes(out)


def _encode_field(field: FieldRow, payload: Payload) -> bytes:
    value = value_of(payload, field.name)
    if isinstance(value, bytes):
        return value
    items = value if isinstance(value, tuple) else (value,)
    if field.element in CODES:
        return Struct(f"={len(items)}{CODES[field.element]}").pack(*items)
    return b"".join(encode(_region_row(item), item) for item in items if isinstance(item, Payload))


def _region_row(region: Payload) -> str:
    return "memory_region" + (XEN if isinstance(region, payloads.XenMemoryRegion) else "")


def value_of(payload: Payload, name: str) -> object:
    """What the table calls `name`, in the package's payload."""
    if isinstance(payload, payloads.ShmemConfig):
        listed = tuple(payload.sizes.get(shmid, 0) for shmid in range(256))
        return len(payload.sizes) if name == "num_regions" else listed
    if name == "num_regions":
        return len(getattr(payload, "regions"))  # noqa: B009  # two table classes have it, their parent is private
    return getattr(payload, name)


@dataclass(frozen=True, slots=True)
class FeatureRow:
    bit: int
    name: str
    gates: str
    requires: frozenset[ProtocolFeature]
    advised: frozenset[ProtocolFeature]

    @classmethod
    def of(cls, row: dict[str, str | int]) -> FeatureRow:
        name = str(row["name"]).removeprefix("VHOST_USER_PROTOCOL_F_")
        must = [part for part in str(row["requires"]).split(";") if "advised" not in part and "virtio" not in part]
        may = [part for part in str(row["requires"]).split(";") if "advised" in part]
        return cls(int(row["bit"]), name, str(row["gates"]), _features_in(must), _features_in(may))


def _features_in(parts: list[str]) -> frozenset[ProtocolFeature]:
    words = re.findall(r"[A-Z_]+", " ".join(parts))
    return frozenset(ProtocolFeature[word] for word in words if word in ProtocolFeature.__members__)


FEATURES: Final = [FeatureRow.of(row) for row in TABLES["protocol_features"]]


@dataclass(frozen=True, slots=True)
class RequestRow:
    channel: Channel
    id: int
    name: str
    payload: str
    fds: str
    answer: str
    answer_fds: str
    mode: str
    gate_words: str
    note: str

    @classmethod
    def of(cls, channel: Channel, row: dict[str, str | int | None]) -> RequestRow:
        prefix = "VHOST_USER_" if channel is Channel.FRONTEND else "VHOST_USER_BACKEND_"
        keys = ("request", "request_fds", "reply", "reply_fds", "reply_mode", "gate", "note")
        words = ("" if row[key] is None else str(row[key]) for key in keys)
        return cls(channel, int(row["id"] or 0), str(row["name"]).removeprefix(prefix), *words)

    def payload_types(self) -> dict[ProtocolFeature | None, PayloadType]:
        """The request's payload by what must be negotiated for it: `log (u64 without LOG_SHMFD)` is two."""
        main = class_of(self.payload.split()[0]) if self.payload else None
        if found := re.search(r"\((\w+) without (\w+)\)", self.payload):
            return {None: class_of(found[1]), ProtocolFeature[found[2]]: main}
        if self.payload and PAYLOADS[self.payload.split()[0]].xen_sizes():
            return {None: main, ProtocolFeature.XEN_MMAP: class_of(self.payload + XEN) if main else None}
        return {None: main}

    def fd_counts(self, *, regions: int, no_fd: bool, log_shmfd: bool) -> set[int]:
        """How many fds may come with it: `n (one per region)`, `0 or 1 (bit 8 = no fd)`, `1 if LOG_SHMFD`, …"""
        if "per region" in self.fds:
            return {regions}
        if "bit 8" in self.fds:
            return {0} if no_fd else {1}
        if "LOG_SHMFD" in self.fds:
            return {1} if log_shmfd else {0}
        return {int(count) for count in re.findall(r"\d", self.fds)}

    def reply(self) -> Reply:
        """When it is answered by a reply of its own."""
        if self.mode != "cond":
            return {"always": Reply.OWN, "ack": Reply.ACK}[self.mode]
        return Reply.OWN_WITH_LOG_SHMFD if "LOG_SHMFD" in self.gate_words else Reply.OWN_IN_POSTCOPY

    def answer_types(self) -> set[PayloadType]:
        """The bodies that the words allow: `u64`, `empty body`, `uuid/u64 body varies`."""
        first = self.answer.split()[0] if self.answer else "u64"
        return {None if name == "empty" else class_of(name) for name in first.split("/")}

    def gate(self) -> ProtocolFeature | Gate | None:
        """What must be negotiated before it may be sent."""
        words = self.gate_words
        if "offered" in words:
            return Gate.PROTOCOL_FEATURES_OFFERED
        if "negotiated" in words:
            return Gate.PROTOCOL_FEATURES
        if "IOMMU_PLATFORM" in words:
            return Gate.IOMMU_PLATFORM
        first = words.split()[0] if words and "for fd" not in words else ""
        return ProtocolFeature.__members__.get(first)


REQUESTS: Final = [RequestRow.of(Channel.FRONTEND, row) for row in TABLES["frontend_requests"]] + [
    RequestRow.of(Channel.BACKEND, row) for row in TABLES["backend_requests"]
]
