"""Opens pages in headless Chromium over its debugging pipe: scripts, keys, sizes, screenshots. No driver is needed."""

from __future__ import annotations

import base64
import fcntl
import json
import os
import select
import shutil
import subprocess
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

NAMES = ("chromium", "chromium-browser", "google-chrome", "chrome")
FLAGS = (
    "--headless",
    "--no-sandbox",
    "--disable-gpu",
    "--hide-scrollbars",
    "--force-color-profile=srgb",
    "--no-first-run",
)
KEYS = {"Enter": "\r", "Tab": "\t", " ": " "}
PATIENCE = 120.0  # seconds without a word from the browser


def find() -> str | None:
    """Returns Chromium's path, None where it is not installed."""
    return next((path for path in map(shutil.which, NAMES) if path), None)


class Page:
    """Is a tab of a `browser`.

    Attributes:
        requests: addresses that the page loaded or tried to load, but for its own file.
        errors: what it wrote on the console as errors, exceptions among them.
    """

    def __init__(self, send: Callable[..., dict[str, Any]], events: list[dict[str, Any]]) -> None:
        self._send, self._events = send, events
        self._address = ""
        for domain in ("Page", "Runtime", "Network", "Log"):
            send(f"{domain}.enable")

    @property
    def requests(self) -> list[str]:
        """Returns the addresses, each as often as it was wanted."""
        urls = [
            e["params"]["request"]["url"] for e in self._events if e["method"] == "Network.requestWillBeSent"
        ]
        return [
            url
            for url in urls
            if url.partition("#")[0] != self._address and not url.startswith(("blob:", "data:"))
        ]

    @property
    def errors(self) -> list[str]:
        """Returns the messages, in their order."""
        found = []
        for event in self._events:
            if event["method"] == "Runtime.exceptionThrown":
                found.append(json.dumps(event["params"]["exceptionDetails"])[:500])
            elif event["method"] == "Log.entryAdded" and event["params"]["entry"]["level"] == "error":
                found.append(event["params"]["entry"]["text"])
        return found

    def open(self, path: Path, fragment: str = "", before: str = "") -> None:
        """Loads a file; returns when its scripts have run. `before` runs in it first, whatever its policy."""
        self._address = path.absolute().as_uri()
        self._send("Page.navigate", url="about:blank")
        self._events.clear()
        script = self._send("Page.addScriptToEvaluateOnNewDocument", source=before)["identifier"]
        self._send("Page.navigate", url=self._address + fragment)
        loaded = (
            "location.protocol === 'file:' && document.readyState === 'complete'"  # not the blank page before
        )
        while not self._send("Runtime.evaluate", expression=loaded)["result"].get("value"):
            time.sleep(0.02)
        self._send("Page.removeScriptToEvaluateOnNewDocument", identifier=script)
        self.settle()

    def settle(self) -> None:
        """Waits until the page has drawn, where its function `drawn` tells, and what it put off to its next frame."""
        self.run(
            "await self.drawn?.();"
            "await new Promise((done) => requestAnimationFrame(() => requestAnimationFrame(done)));"
        )

    def run(self, script: str) -> Any:
        """Returns what the body of an async function returns in the page, as plain values.

        Raises:
            RuntimeError: it threw.
        """
        found = self._send(
            "Runtime.evaluate",
            expression=f"(async () => {{ {script} }})()",
            awaitPromise=True,
            returnByValue=True,
        )
        if "exceptionDetails" in found:
            raise RuntimeError(json.dumps(found["exceptionDetails"])[:2000])
        return found["result"].get("value")

    def press(self, key: str) -> None:
        """Presses and releases a key, as the keyboard does."""
        text = KEYS.get(key, key if len(key) == 1 else "")
        codes = {
            "Enter": 13,
            "Tab": 9,
            " ": 32,
            "ArrowLeft": 37,
            "ArrowUp": 38,
            "ArrowRight": 39,
            "ArrowDown": 40,
        }
        code = codes.get(key, ord(key.upper()) if len(key) == 1 else 0)
        for kind in ("keyDown" if text else "rawKeyDown", "keyUp"):
            self._send(
                "Input.dispatchKeyEvent",
                type=kind,
                key=key,
                windowsVirtualKeyCode=code,
                **({"text": text} if kind == "keyDown" else {}),
            )
        self.settle()

    def resize(self, width: int, height: int, scale: float = 1.0) -> None:
        """Sets the window's size in CSS pixels, and how many pixels of the screen one is."""
        self._send(
            "Emulation.setDeviceMetricsOverride",
            width=width,
            height=height,
            deviceScaleFactor=scale,
            mobile=width < 600,
        )
        self.run(
            "await new Promise((done) => setTimeout(done, 250));"
        )  # pages redraw a little after the last change
        self.settle()

    def emulate(self, dark: bool = False, media: str = "") -> None:
        """Sets the reader's colour scheme, and "print" as the medium."""
        scheme = {"name": "prefers-color-scheme", "value": "dark" if dark else "light"}
        self._send("Emulation.setEmulatedMedia", media=media, features=[scheme])
        self.settle()

    def screenshot(self, path: Path, whole: bool = False) -> None:
        """Writes what is seen, or the whole page, as a PNG."""
        found = self._send(
            "Page.captureScreenshot",
            format="png",
            captureBeyondViewport=whole,
            **({"clip": self._all()} if whole else {}),
        )
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(base64.b64decode(found["data"]))

    def pdf(self) -> bytes:
        """Returns the page as it is printed."""
        return base64.b64decode(self._send("Page.printToPDF", printBackground=False)["data"])

    def _all(self) -> dict[str, float]:
        size = self._send("Page.getLayoutMetrics")["cssContentSize"]
        return {"x": 0, "y": 0, "width": size["width"], "height": size["height"], "scale": 1}


@contextmanager
def browser() -> Iterator[Page]:
    """Starts Chromium with an empty profile, and gives its tab; it ends with the context.

    Raises:
        FileNotFoundError: there is no Chromium on PATH.
    """
    path = find()
    if path is None:
        raise FileNotFoundError(f"no Chromium on PATH ({', '.join(NAMES)})")
    (to_read, to_write), (from_read, from_write) = os.pipe(), os.pipe()
    ends = [fcntl.fcntl(end, fcntl.F_DUPFD, 10) for end in (to_read, from_write)]  # clear of 3 and 4

    def place() -> None:
        os.dup2(ends[0], 3)
        os.dup2(ends[1], 4)

    with tempfile.TemporaryDirectory(prefix="cpr-chromium-", ignore_cleanup_errors=True) as profile:
        process = subprocess.Popen(
            [path, *FLAGS, "--remote-debugging-pipe", f"--user-data-dir={profile}", "about:blank"],
            preexec_fn=place, close_fds=False, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL,
        )  # fmt: skip
        for end in (to_read, from_write, *ends):
            os.close(end)
        try:
            yield _tab(_Pipe(from_read, to_write))
        finally:
            process.terminate()
            process.wait(20)
            os.close(from_read)
            os.close(to_write)


class _Pipe:
    """Sends commands of Chromium's protocol, one after the other, and collects its events."""

    def __init__(self, reading: int, writing: int) -> None:
        self.reading, self.writing = reading, writing
        self.number, self.rest = 0, b""
        self.events: list[dict[str, Any]] = []

    def send(self, method: str, session: str = "", **params: Any) -> dict[str, Any]:
        self.number += 1
        message = {
            "id": self.number,
            "method": method,
            "params": params,
            **({"sessionId": session} if session else {}),
        }
        body = json.dumps(message).encode() + b"\0"
        while body:
            body = body[os.write(self.writing, body) :]
        while True:
            answer = self._next()
            if answer.get("id") == self.number:
                if "error" in answer:
                    raise RuntimeError(f"{method}: {answer['error']}")
                return dict(answer["result"])
            if "method" in answer:
                self.events.append(answer)

    def _next(self) -> dict[str, Any]:
        while b"\0" not in self.rest:
            if not select.select([self.reading], [], [], PATIENCE)[0]:
                raise TimeoutError(f"Chromium has said nothing for {PATIENCE:g} seconds")
            part = os.read(self.reading, 1 << 20)
            if not part:
                raise ConnectionError("Chromium has ended")
            self.rest += part
        body, _, self.rest = self.rest.partition(b"\0")
        return dict(json.loads(body))


def _tab(pipe: _Pipe) -> Page:
    target = pipe.send("Target.createTarget", url="about:blank")["targetId"]
    session = pipe.send("Target.attachToTarget", targetId=target, flatten=True)["sessionId"]
    return Page(lambda method, **params: pipe.send(method, session, **params), pipe.events)
