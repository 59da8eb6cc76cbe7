"""What may be chosen for a front-end."""

from __future__ import annotations

from typing import TypedDict

from .protocol.dialects import Dialect
from .shared_objects import SharedObjects


class FrontendOptions(TypedDict, total=False):
    """The keywords of a Frontend, as its class explains them."""

    dialect: Dialect
    max_maps: int
    partial_timeout: float
    reply_timeout: float
    populate: bool
    packed: bool
    in_order: bool
    features: int
    inflight: bool
    inband: bool
    shared_objects: SharedObjects | None
