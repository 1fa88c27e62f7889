"""A headless Chromium, spoken to by its DevTools protocol over two pipes."""

import base64
import itertools
import json
import os
import shutil
import subprocess
import time
from pathlib import Path
from typing import Any

import pytest

PATIENCE = 60.0  # seconds; the machine may be busy
FLAGS = (
    "--headless", "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run", "--disable-background-networking",
    "--disable-component-update", "--disable-sync", "--hide-scrollbars", "--remote-debugging-pipe")


class Browser:
    """One page of a browser of its own. `close` it."""

    def __init__(self, profile: Path) -> None:
        program = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
        if program is None:
            pytest.skip("there is no Chromium on this machine to open the page with")
        # The protocol's pipes are the file descriptors 3 and 4 of the browser.
        (theirs_in, self._in), (self._out, theirs_out) = os.pipe(), os.pipe()
        command = ["bash", "-c", f'exec "$@" 3<&{theirs_in} 4>&{theirs_out}', "bash", program, *FLAGS,
                   f"--user-data-dir={profile}", "about:blank"]
        self.process = subprocess.Popen(command, pass_fds=(theirs_in, theirs_out), stdout=subprocess.DEVNULL,
                                        stderr=subprocess.DEVNULL)
        os.close(theirs_in)
        os.close(theirs_out)
        self._numbers, self._seen, self._session = itertools.count(1), b"", ""
        self.events: list[dict[str, Any]] = []
        target = self.call("Target.createTarget", url="about:blank")["targetId"]
        self._session = self.call("Target.attachToTarget", targetId=target, flatten=True)["sessionId"]
        for domain in ("Page", "Runtime", "Log", "Network"):
            self.call(f"{domain}.enable")

    def call(self, method: str, **parameters: Any) -> dict[str, Any]:
        """Ask the browser; what it answers. What happens meanwhile is kept in `events`."""
        number = next(self._numbers)
        session = {"sessionId": self._session} if self._session else {}
        os.write(self._in, json.dumps({"id": number, "method": method, "params": parameters, **session}).encode() + b"\0")
        while (message := self._message()).get("id") != number:
            self.events.append(message)
        assert "error" not in message, message
        return message["result"]

    def _message(self) -> dict[str, Any]:
        while b"\0" not in self._seen:
            block = os.read(self._out, 1 << 16)
            assert block, "the browser has gone"
            self._seen += block
        message, _, self._seen = self._seen.partition(b"\0")
        return json.loads(message)

    def open(self, url: str, *, width: int = 900, height: int = 800, dark: bool = False) -> None:
        """Go to a page, in a window of so many pixels."""
        self.call("Emulation.setDeviceMetricsOverride", width=width, height=height, deviceScaleFactor=1, mobile=width < 600)
        scheme = {"name": "prefers-color-scheme", "value": "dark" if dark else "light"}
        self.call("Emulation.setEmulatedMedia", features=[scheme])
        self.call("Page.navigate", url=url)
        self.wait_for("document.readyState == 'complete' && location.href != 'about:blank'")

    def run(self, script: str) -> Any:
        """The value of an expression on the page."""
        found = self.call("Runtime.evaluate", expression=script, returnByValue=True, awaitPromise=True)
        assert "exceptionDetails" not in found, found["exceptionDetails"]
        return found["result"].get("value")

    def wait_for(self, script: str) -> Any:
        """Wait until the expression is true."""
        until = time.monotonic() + PATIENCE
        while not (value := self.run(script)):
            assert time.monotonic() < until, f"{script}: {self.run('document.body.innerText')!r}"
            time.sleep(0.02)
        return value

    def type(self, place: str, text: str) -> None:
        """Put text where a person would, and say so to the page as the keyboard does."""
        self.run(f"document.querySelector({json.dumps(place)}).focus()")
        self.call("Input.insertText", text=text)

    def press_enter(self) -> None:
        """The key."""
        for kind in ("keyDown", "keyUp"):
            self.call("Input.dispatchKeyEvent", type=kind, key="Enter", code="Enter", windowsVirtualKeyCode=13, text="\r")

    def click(self, place: str) -> None:
        """A click on an element."""
        self.run(f"document.querySelector({json.dumps(place)}).click()")

    def screenshot(self) -> bytes:
        """The window as a PNG."""
        return base64.b64decode(self.call("Page.captureScreenshot", format="png")["data"])

    def complaints(self) -> list[Any]:
        """What the console and the page's policy had to say, and requests beyond `127.0.0.1`."""
        said = [each for each in self.events if each["method"] in ("Runtime.exceptionThrown", "Log.entryAdded",
                                                                   "Runtime.consoleAPICalled")]
        asked = [each["params"]["request"]["url"] for each in self.events if each["method"] == "Network.requestWillBeSent"]
        return said + [url for url in asked if not url.startswith(("http://127.0.0.1:", "data:", "about:"))]

    def close(self) -> None:
        """End the browser."""
        os.close(self._in)
        os.close(self._out)
        self.process.terminate()
        self.process.wait(30)
