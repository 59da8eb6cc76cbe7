"""Where the specifications say what rules hold peers to: the address of a section."""

from __future__ import annotations

import re
from typing import Final

VHOST_USER: Final = "https://www.qemu.org/docs/master/interop/vhost-user.html"
VIRTIO: Final = "https://docs.oasis-open.org/virtio/virtio/v1.2/virtio-v1.2.html"
"""Its anchors are numbers that change with the version: a section of it is to be looked up by its heading."""
VIRTIO_PREFIX: Final = "VIRTIO: "
_TYPES: Final = {
    "VHOST_USER_BACKEND_": "Back-end message types",
    "VHOST_USER_PROTOCOL_F_": "",
    "VHOST_USER_": "Front-end message types",
}


def address_of(section: str) -> str:
    """The page of a section, and where on it."""
    if section.startswith(VIRTIO_PREFIX):
        return VIRTIO
    return f"{VHOST_USER}#{_anchor(heading_of(section))}"


def heading_of(section: str) -> str:
    """The heading that a section of vhost-user's specification has, or that the request it is named after is under."""
    prefix = next((prefix for prefix in _TYPES if section.startswith(prefix)), "")
    return _TYPES.get(prefix) or section


def _anchor(heading: str) -> str:
    return re.sub(r"\W+|_+", "-", heading.lower()).strip("-")
