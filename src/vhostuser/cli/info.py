"""`vhu info`: what a back-end offers."""

from __future__ import annotations

import json
from collections.abc import Iterable
from dataclasses import asdict, dataclass
from typing import Final

from ..errors import DeadlineExpired, Disconnected, RequestFailed
from ..frontend import Frontend
from ..limited_log import printable
from ..protocol.dialects import Dialect
from ..protocol.numbers import MAX_CONFIG, ProtocolFeature, protocol_feature_names
from ..virtio.numbers import feature_names
from .arguments import Parser, add_dialect, checked, dialect_of, seconds
from .logs import add_log_level, log_to_stderr
from .outcome import Exit, interrupt, on_end, put, reach

PROGRAM: Final = "vhu info"
_UNITS: Final = ("bytes", "KiB", "MiB", "GiB", "TiB")


@dataclass(frozen=True, slots=True)
class Offer:
    """What a back-end offers, as far as a front-end can see it. Masks are as they were on the wire."""

    socket: str
    dialect: str
    features: list[str]
    features_mask: str
    protocol_features: list[str]
    protocol_features_mask: str
    queues: int
    config: str | None
    """The configuration space in hexadecimal; None if it can't be read."""
    regions: dict[str, int]
    diagnosis: str | None


def info(arguments: list[str]) -> int:
    """Run `vhu info`; its exit code."""
    parser = Parser(PROGRAM, "Shake hands with a back-end, and print what it offers. It sees one front-end come and go.")
    parser.add_argument("socket", metavar="SOCKET", help="the back-end's Unix socket")
    parser.add_argument("--json", action="store_true", help="one JSON object")
    parser.add_argument(
        "--timeout", type=checked(seconds), default=5.0, metavar="S", help="seconds for an answer (default 5)"
    )
    add_dialect(parser)
    add_log_level(parser, "warn")
    options = parser.parse_args(arguments)
    log_to_stderr(PROGRAM, options.log_level)
    on_end(interrupt)
    dialect = dialect_of(options)

    def ask() -> Frontend:
        return Frontend.connect(options.socket, dialect=dialect, reply_timeout=options.timeout)

    with reach(options.socket, ask) as frontend:
        offer = _offer(frontend, options.socket, dialect)
    put(json.dumps(asdict(offer)) if options.json else _words(offer))
    return Exit.DONE


def _offer(frontend: Frontend, socket: str, dialect: Dialect) -> Offer:
    features, protocol_features = frontend.offered
    return Offer(
        socket=socket,
        dialect=dialect.name,
        features=sorted(feature_names(features)),
        features_mask=hex(features),
        protocol_features=sorted(protocol_feature_names(protocol_features)),
        protocol_features_mask=hex(dialect.to_wire(protocol_features)),
        queues=frontend.queue_count,
        regions={str(shmid): region.size for shmid, region in frontend.shm.items()},
        diagnosis=frontend.diagnosis,
        config=_config(frontend),
    )


def _config(frontend: Frontend) -> str | None:
    """The configuration space: no request tells its size, so the largest piece that the back-end gives is looked for.

    It is asked for last, since some back-ends answer a piece that is too large by hanging up.
    """
    if ProtocolFeature.CONFIG.name not in frontend.protocol_features:
        return None
    found, least, greatest = b"", 0, MAX_CONFIG
    size = greatest
    try:
        while least < greatest:
            try:
                found = frontend.config(0, size)
                least = size
            except RequestFailed:
                greatest = size - 1
            size = (least + greatest + 1) // 2
    except (Disconnected, DeadlineExpired):
        return found.hex() or None
    return found.hex()


def _words(offer: Offer) -> str:
    """The offer for people."""
    config = f"{len(offer.config) // 2} bytes{_digest(offer.config)}" if offer.config is not None else "can't be read"
    rows = [
        ("back-end", offer.socket),
        ("features", f"{offer.features_mask}  {' '.join(offer.features)}"),
        ("protocol features", f"{offer.protocol_features_mask}  {' '.join(offer.protocol_features)}"),
        ("queues", str(offer.queues)),
        ("configuration space", config),
        ("shared memory regions", _regions(offer.regions)),
    ]
    if offer.diagnosis:
        rows.append(("diagnosis", offer.diagnosis))
    return _table(rows)


def _table(rows: Iterable[tuple[str, str]]) -> str:
    return "\n".join(f"{name + ':':23}{printable(text)}" for name, text in rows)


def _digest(config: str) -> str:
    """The bytes themselves, but for zeros at the end."""
    used = bytes.fromhex(config).rstrip(b"\0")
    if not used:
        return ", all zero"
    return f": {used.hex(' ')}" + (", then zeros" if len(used) * 2 < len(config) else "")


def _regions(regions: dict[str, int]) -> str:
    return ", ".join(f"{shmid}: {in_units(size)}" for shmid, size in regions.items()) or "none"


def in_units(size: int) -> str:
    """A number of bytes for people: in the largest unit that divides it."""
    unit = 0
    while size and size % 1024 == 0 and unit + 1 < len(_UNITS):
        size, unit = size // 1024, unit + 1
    return f"{size} {_UNITS[unit]}"
