from collections.abc import Sequence
from typing import final

from ..virtio.chain import DescriptorChain

def made_views(chain: DescriptorChain) -> Sequence[memoryview]: ...

@final
class RingChain(DescriptorChain):
    """To `isinstance`; it has no bases."""

    def __init__(self) -> None: ...
