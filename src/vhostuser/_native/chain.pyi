from typing import final

from ..virtio.chain import DescriptorChain

@final
class RingChain(DescriptorChain):
    """To `isinstance`; it has no bases."""

    def __init__(self) -> None: ...
