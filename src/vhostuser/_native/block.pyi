from .handler import Handler

class BlockFile(Handler):
    durable: bool
    lost: int
    def __init__(self, fd: int, sectors: int, read_only: bool, name: bytes) -> None: ...
