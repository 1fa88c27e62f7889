"""A headless Chromium, controlled through the DevTools protocol over two pipes."""

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

TIMEOUT_SECONDS = 60.0  # the machine may be busy
CHROMIUM_FLAGS = (
    "--headless",
    "--no-sandbox",
    "--disable-gpu",
    "--disable-quic",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
    "--hide-scrollbars",
    "--remote-debugging-pipe",
)


class Browser:
    """A browser process with one page, to be ended by `close`. Skips the test without Chromium."""

    def __init__(self, profile: Path) -> None:
        program = (
            shutil.which("chromium")
            or shutil.which("chromium-browser")
            or shutil.which("google-chrome")
        )
        if program is None:
            pytest.skip("no Chromium on this machine")
        # With --remote-debugging-pipe the browser reads commands from descriptor 3 and writes to 4.
        # bash moves the pipes there, because Popen keeps the numbers of the descriptors.
        (browser_in, self._command_pipe), (self._reply_pipe, browser_out) = os.pipe(), os.pipe()
        command = [
            "bash",
            "-c",
            f'exec "$@" 3<&{browser_in} 4>&{browser_out}',
            "bash",
            program,
            *CHROMIUM_FLAGS,
            f"--user-data-dir={profile}",
            "about:blank",
        ]
        self.process = subprocess.Popen(
            command,
            pass_fds=(browser_in, browser_out),
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
        )
        os.close(browser_in)
        os.close(browser_out)
        self._message_ids = itertools.count(1)
        self._buffer = b""  # received bytes of messages that are not complete
        self._session_id = ""  # of the page; empty until the browser has opened it
        self.events: list[dict[str, Any]] = []
        target = self.send_command("Target.createTarget", url="about:blank")["targetId"]
        self._session_id = self.send_command(
            "Target.attachToTarget", targetId=target, flatten=True
        )["sessionId"]
        for domain in ("Page", "Runtime", "Log", "Network"):
            self.send_command(f"{domain}.enable")

    def send_command(self, method: str, **parameters: Any) -> dict[str, Any]:
        """Send a command and return its result; events that arrive meanwhile go to `events`.

        Messages in both directions are JSON that ends in a zero byte.
        """
        message_id = next(self._message_ids)
        command = {"id": message_id, "method": method, "params": parameters}
        if self._session_id:
            command["sessionId"] = self._session_id
        os.write(self._command_pipe, json.dumps(command).encode() + b"\0")
        while (message := self._read_message()).get("id") != message_id:
            self.events.append(message)
        assert "error" not in message, message
        return message["result"]

    def _read_message(self) -> dict[str, Any]:
        """Wait for the browser's next message: the reply to a command, or an event."""
        while b"\0" not in self._buffer:
            block = os.read(self._reply_pipe, 1 << 16)
            assert block, "the browser has exited"
            self._buffer += block
        message, _, self._buffer = self._buffer.partition(b"\0")
        return json.loads(message)

    def open_page(
        self, url: str, *, width: int = 900, height: int = 800, dark: bool = False
    ) -> None:
        """Load a page in a window of `width` x `height` pixels."""
        self.send_command(
            "Emulation.setDeviceMetricsOverride",
            width=width,
            height=height,
            deviceScaleFactor=1,
            mobile=width < 600,
        )
        scheme = {"name": "prefers-color-scheme", "value": "dark" if dark else "light"}
        self.send_command("Emulation.setEmulatedMedia", features=[scheme])
        self.send_command("Page.navigate", url=url)
        self.wait_for("document.readyState == 'complete' && location.href != 'about:blank'")

    def evaluate(self, expression: str) -> Any:
        """Return the value of a JavaScript expression on the page."""
        reply = self.send_command(
            "Runtime.evaluate", expression=expression, returnByValue=True, awaitPromise=True
        )
        assert "exceptionDetails" not in reply, reply["exceptionDetails"]
        return reply["result"].get("value")

    def wait_for(self, expression: str) -> Any:
        """Wait until a JavaScript expression is truthy, and return its value."""
        deadline = time.monotonic() + TIMEOUT_SECONDS
        while not (value := self.evaluate(expression)):
            assert time.monotonic() < deadline, (
                f"{expression}: {self.evaluate('document.body.innerText')!r}"
            )
            time.sleep(0.02)
        return value

    def insert_text(self, selector: str, text: str) -> None:
        """Enter text into an element, with the events of a keyboard."""
        self.evaluate(f"document.querySelector({json.dumps(selector)}).focus()")
        self.send_command("Input.insertText", text=text)

    def press_enter(self) -> None:
        """Press Enter in the focused element."""
        for kind in ("keyDown", "keyUp"):
            self.send_command(
                "Input.dispatchKeyEvent",
                type=kind,
                key="Enter",
                code="Enter",
                windowsVirtualKeyCode=13,
                text="\r",
            )

    def click(self, selector: str) -> None:
        """Click an element."""
        self.evaluate(f"document.querySelector({json.dumps(selector)}).click()")

    def screenshot(self) -> bytes:
        """Return the window as a PNG."""
        return base64.b64decode(self.send_command("Page.captureScreenshot", format="png")["data"])

    def errors_and_external_requests(self) -> list[Any]:
        """Return console messages, policy violations, and requests beyond 127.0.0.1."""
        # Violations of the content security policy are log entries.
        console_methods = (
            "Runtime.exceptionThrown",
            "Log.entryAdded",
            "Runtime.consoleAPICalled",
        )
        problems: list[Any] = []
        for event in self.events:
            if event["method"] in console_methods:
                problems.append(event)
            elif event["method"] == "Network.requestWillBeSent":
                url = event["params"]["request"]["url"]
                if not url.startswith(("http://127.0.0.1:", "data:", "about:")):
                    problems.append(url)
        return problems

    def close(self) -> None:
        """Terminate the browser."""
        os.close(self._command_pipe)
        os.close(self._reply_pipe)
        self.process.terminate()
        self.process.wait(30)
