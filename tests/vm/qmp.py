"""QEMU's machine protocol (QMP): JSON objects, one a line."""

from __future__ import annotations

import json
import socket

from .qtest import Wire


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
