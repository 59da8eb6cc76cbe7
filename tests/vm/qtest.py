"""QEMU's qtest protocol: one line a command, one line an answer, to read and write guest memory and I/O ports."""

from __future__ import annotations

import base64
import socket

from vhostuser.vm.qmp import Wire

CHUNK = 1 << 20


class QTest:
    """Guest-physical memory and I/O ports, as a CPU of the guest would reach them."""

    def __init__(self, sock: socket.socket, seconds: float) -> None:
        self._wire = Wire(sock, seconds)
        self.close = self._wire.close

    def command(self, *words: str | int) -> str:
        """Send a command and give what follows OK in its answer."""
        self._wire.send(" ".join(word if isinstance(word, str) else hex(word) for word in words))
        while (line := self._wire.receive()).startswith("IRQ "):
            pass
        status, _, value = line.partition(" ")
        if status != "OK":
            raise RuntimeError(f"qtest {words[0]}: {line}")
        return value

    def readb(self, address: int) -> int:
        """Read 8 bits."""
        return int(self.command("readb", address), 16)

    def readw(self, address: int) -> int:
        """Read 16 bits."""
        return int(self.command("readw", address), 16)

    def readl(self, address: int) -> int:
        """Read 32 bits."""
        return int(self.command("readl", address), 16)

    def readq(self, address: int) -> int:
        """Read 64 bits."""
        return int(self.command("readq", address), 16)

    def writeb(self, address: int, value: int) -> None:
        """Write 8 bits."""
        self.command("writeb", address, value)

    def writew(self, address: int, value: int) -> None:
        """Write 16 bits."""
        self.command("writew", address, value)

    def writel(self, address: int, value: int) -> None:
        """Write 32 bits."""
        self.command("writel", address, value)

    def writeq(self, address: int, value: int) -> None:
        """Write 64 bits."""
        self.command("writeq", address, value)

    def inl(self, port: int) -> int:
        """Read 32 bits from an I/O port."""
        return int(self.command("inl", port), 16)

    def outl(self, port: int, value: int) -> None:
        """Write 32 bits to an I/O port."""
        self.command("outl", port, value)

    def memread(self, address: int, length: int) -> bytes:
        """Read a range of guest memory."""
        places = range(address, address + length, CHUNK)
        return b"".join(self._read(place, min(CHUNK, address + length - place)) for place in places)

    def _read(self, address: int, length: int) -> bytes:
        return base64.b64decode(self.command("b64read", address, length))

    def memwrite(self, address: int, data: bytes) -> None:
        """Write a range of guest memory."""
        for start in range(0, len(data), CHUNK):
            part = data[start : start + CHUNK]
            self.command("b64write", address + start, len(part), base64.b64encode(part).decode())
