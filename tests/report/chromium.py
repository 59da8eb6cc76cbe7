"""A browser without a window, driven over its debugging pipe: fds 3 and 4, messages of JSON that a NUL byte ends."""

from __future__ import annotations

import base64
import json
import os
import select
import signal
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

from vhostuser.testing.wire import DEADLINE
from vhostuser.vm.browser import BROWSER

PATIENCE = 3 * DEADLINE
"""A browser takes its time on a busy machine."""
Values = dict[str, object]
_KEYS = {"+": 187, "-": 189, "0": 48, "w": 87, "s": 83, "Home": 36, "End": 35, "ArrowLeft": 37, "ArrowRight": 39}
_KEYS |= {"ArrowDown": 40, "ArrowUp": 38, "PageUp": 33, "PageDown": 34}


class BrowserError(Exception):
    """The browser, or the page, says that something is wrong."""


class Browser:
    """One browser with one page."""

    def __init__(self, pid: int, to: int, back: int) -> None:
        self._pid, self._to, self._back = pid, to, back
        self._number, self._buffer = 0, b""
        self._session = ""
        self.complaints: list[str] = []
        """What the page wrote to its console, threw or was refused."""

    def open(self, path: Path, *, width: int = 1280, height: int = 900, dark: bool = False) -> None:
        """Show a file, in this size of window."""
        if not self._session:
            target = self.call("Target.createTarget", url="about:blank")["targetId"]
            self._session = str(self.call("Target.attachToTarget", targetId=target, flatten=True)["sessionId"])
            for domain in ("Page", "Runtime", "Log"):
                self.call(f"{domain}.enable")
        self.resize(width, height)
        scheme = {"name": "prefers-color-scheme", "value": "dark" if dark else "light"}
        self.call("Emulation.setEmulatedMedia", features=[scheme])
        self.call("Page.navigate", url=path.absolute().as_uri())
        self.until(f"location.pathname === {json.dumps(str(path.absolute()))} && document.readyState === 'complete'")
        self.settle()

    def resize(self, width: int, height: int) -> None:
        self.call("Emulation.setDeviceMetricsOverride", width=width, height=height, deviceScaleFactor=1, mobile=False)

    def value(self, expression: str) -> object:
        """What an expression is in the page."""
        found = self.call("Runtime.evaluate", expression=expression, returnByValue=True, awaitPromise=True)
        if "exceptionDetails" in found:
            raise BrowserError(json.dumps(found["exceptionDetails"])[:2000])
        result = found["result"]
        return result.get("value") if isinstance(result, dict) else None

    def number(self, expression: str) -> float:
        found = self.value(expression)
        if isinstance(found, bool) or not isinstance(found, int | float):
            raise BrowserError(f"{expression} is {found!r}, no number")
        return found

    def text(self, selector: str) -> str:
        return str(self.value(f"document.querySelector({json.dumps(selector)}).textContent"))

    def until(self, expression: str) -> None:
        """Wait for an expression to hold."""
        deadline = time.monotonic() + PATIENCE
        while not self.value(expression):
            if time.monotonic() > deadline:
                raise BrowserError(f"it never came true: {expression}; the page says {self.complaints}")

    def until_true(self, holds: Callable[[], bool]) -> None:
        """Wait for something outside of the page, and let it go on."""
        if not _within(PATIENCE, lambda: self.value("1") == 1 and holds()):
            raise BrowserError(f"it never came true; the page says {self.complaints}")

    def settle(self) -> None:
        """Let the page draw what it has to."""
        self.value("new Promise((done) => requestAnimationFrame(() => requestAnimationFrame(() => done(1))))")

    def key(self, key: str, *, shift: bool = False) -> None:
        for kind in ("rawKeyDown" if len(key) > 1 else "keyDown", "keyUp"):
            text = {"text": key} if len(key) == 1 and kind == "keyDown" else {}
            code = _KEYS[key]
            self.call("Input.dispatchKeyEvent", type=kind, key=key, windowsVirtualKeyCode=code, modifiers=8 * shift, **text)
        self.settle()

    def mouse(self, kind: str, x: float, y: float, **more: object) -> None:
        """mouseMoved, mousePressed, mouseReleased, mouseWheel."""
        pressed = {"button": "left", "clickCount": 1, "buttons": 1} if kind in ("mousePressed", "mouseReleased") else {}
        self.call("Input.dispatchMouseEvent", type=kind, x=x, y=y, **pressed, **more)
        self.settle()

    def place(self, selector: str) -> tuple[float, float, float, float]:
        """Left, top, width and height of an element in the window."""
        box = self.value(f"(({_PLACE})({json.dumps(selector)}))")
        if not isinstance(box, list):
            raise BrowserError(f"no {selector}")
        left, top, width, height = box
        return left, top, width, height

    def screenshot(self, file: Path) -> None:
        """The whole page as a PNG."""
        shot = self.call("Page.captureScreenshot", format="png", captureBeyondViewport=True)
        file.write_bytes(base64.b64decode(str(shot["data"])))

    def call(self, method: str, **parameters: object) -> Values:
        """Call a method of the protocol; its result."""
        self._number += 1
        message: Values = {"id": self._number, "method": method, "params": parameters}
        if self._session and not method.startswith(("Target.", "Browser.")):
            message["sessionId"] = self._session
        os.write(self._to, json.dumps(message).encode() + b"\0")
        while True:
            found = self._next()
            if found.get("id") == self._number:
                if "error" in found:
                    raise BrowserError(f"{method}: {found['error']}")
                result = found["result"]
                return result if isinstance(result, dict) else {}
            self._note(found)

    def _next(self) -> Values:
        deadline = time.monotonic() + PATIENCE
        while b"\0" not in self._buffer:
            if not select.select([self._back], [], [], max(0.0, deadline - time.monotonic()))[0]:
                raise BrowserError("the browser says nothing")
            data = os.read(self._back, 1 << 20)
            if not data:
                raise BrowserError("the browser is gone")
            self._buffer += data
        line, _, self._buffer = self._buffer.partition(b"\0")
        found = json.loads(line)
        return found if isinstance(found, dict) else {}

    def _note(self, event: Values) -> None:
        if event.get("method") in ("Runtime.exceptionThrown", "Runtime.consoleAPICalled", "Log.entryAdded"):
            self.complaints.append(json.dumps(event["params"])[:2000])


_PLACE = """(selector) => {
  const element = document.querySelector(selector);
  element.scrollIntoView({ block: "center" });
  const { left, top, width, height } = element.getBoundingClientRect();
  return [left, top, width, height];
}"""


@contextmanager
def browser() -> Iterator[Browser]:
    """Start one, and end it."""
    with tempfile.TemporaryDirectory(prefix="vhu-browser-") as folder, _pipes() as (reads, to, back, writes):
        command = [*BROWSER.command(), "--remote-debugging-pipe", f"--user-data-dir={folder}"]
        ends = [(os.POSIX_SPAWN_DUP2, reads, 3), (os.POSIX_SPAWN_DUP2, writes, 4)]
        files = [*ends, (os.POSIX_SPAWN_OPEN, 2, os.devnull, os.O_WRONLY, 0)]
        environment = {**os.environ, "HOME": folder, "XDG_CACHE_HOME": folder}
        pid = os.posix_spawn(command[0], command, environment, file_actions=files, setpgroup=0)
        os.close(reads)
        os.close(writes)
        one = Browser(pid, to, back)
        try:
            yield one
            one.call("Browser.close")
        finally:
            _end(pid)


@contextmanager
def _pipes() -> Iterator[tuple[int, int, int, int]]:
    """Two pipes whose ends are above the numbers that the browser wants them at."""
    low = [os.open(os.devnull, os.O_RDONLY) for _ in range(5)]
    reads, to = os.pipe()
    back, writes = os.pipe()
    for fd in low:
        os.close(fd)
    try:
        yield reads, to, back, writes
    finally:
        os.close(to)
        os.close(back)


def _end(pid: int) -> None:
    """It ends by itself; or else, with all that it started."""
    if not _within(DEADLINE, lambda: os.waitpid(pid, os.WNOHANG)[0] == pid):
        os.killpg(pid, signal.SIGKILL)
        os.waitpid(pid, 0)


def _within(seconds: float, done: Callable[[], bool]) -> bool:
    deadline = time.monotonic() + seconds
    while not done():
        if time.monotonic() > deadline:
            return False
        time.sleep(0.01)
    return True
