"""QEMU's machine protocol (QMP): JSON objects, one a line."""

from __future__ import annotations

import json
import socket
import time


class Wire:
    """Lines over a stream socket, each awaited for at most `seconds`."""

    def __init__(self, sock: socket.socket, seconds: float) -> None:
        self.seconds = seconds
        self._sock = sock
        self._received = bytearray()

    def send(self, line: str) -> None:
        """Send a line."""
        self._sock.settimeout(self.seconds)
        self._sock.sendall(line.encode() + b"\n")

    def receive(self) -> str:
        """The next line."""
        deadline = time.monotonic() + self.seconds
        while (end := self._received.find(b"\n")) < 0:
            self._received += self._more(deadline)
        line = self._received[:end].decode()
        del self._received[: end + 1]
        return line

    def _more(self, deadline: float) -> bytes:
        self._sock.settimeout(max(deadline - time.monotonic(), 0.001))
        try:
            data = self._sock.recv(1 << 16)
        except TimeoutError:
            raise TimeoutError(f"QEMU did not answer within {self.seconds} s") from None
        if not data:
            raise ConnectionError("QEMU closed its socket")
        return data

    def close(self) -> None:
        """Close the socket."""
        self._sock.close()


class QmpError(Exception):
    """QEMU refused a command."""


class Qmp:
    """A monitor, ready for commands."""

    def __init__(self, sock: socket.socket, seconds: float) -> None:
        self._wire = Wire(sock, seconds)
        self._events: list[str] = []
        self.close = self._wire.close

    def greet(self) -> None:
        """Wait for QEMU's greeting, which it sends once its devices are there, and leave negotiation."""
        self._receive()
        self.execute("qmp_capabilities")

    def execute(self, command: str, **arguments: object) -> object:
        """Run a command and give its result; events that come meanwhile are kept for `wait_for`."""
        self._wire.send(json.dumps({"execute": command, "arguments": arguments}))
        while True:
            answer = self._receive()
            if "error" in answer:
                raise QmpError(f"{command}: {answer['error']}")
            if "return" in answer:
                return answer["return"]

    def wait_for(self, event: str) -> None:
        """Wait until an event (`RESET`, `STOP`) has come since the last `forget_events`."""
        while event not in self._events:
            self._receive()

    def forget_events(self) -> None:
        """Forget the events so far."""
        self._events.clear()

    def _receive(self) -> dict[str, object]:
        answer: dict[str, object] = json.loads(self._wire.receive())
        if "event" in answer:
            self._events.append(str(answer["event"]))
        return answer
