"""Peers as they are: which rules one of that name does not keep, and why. So a change of it is seen, for better or worse."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Final

from .profile_libvhost import LIBVHOST_USER
from .profile_rust import RUST_VMM, VIRTIOFSD, VSOCK

SPEC: Final = "spec"
STRICT: Final = "strict"
"""The same, and what is a SHOULD counts as a MUST does."""
BACK_END_PROFILES: Final[dict[str, Mapping[str, str]]] = {
    SPEC: {},
    STRICT: {},
    "libvhost-user": LIBVHOST_USER,
    "rust-vmm": RUST_VMM,
    "virtiofsd": RUST_VMM | VIRTIOFSD,
    "vhost-device-vsock": RUST_VMM | VSOCK,
}
