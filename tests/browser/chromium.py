"""A real browser without a screen, spoken to over a pipe by Chromium's own protocol."""

from __future__ import annotations

import base64
import json
import os
import select
import shutil
import subprocess
import tempfile
import time
from pathlib import Path

NAMES = ("chromium", "chromium-browser", "google-chrome")
FLAGS = (
    *("--headless", "--disable-gpu", "--no-first-run", "--disable-background-networking"),
    *("--disable-component-update", "--disable-sync", "--disable-quic", "--mute-audio"),
    *("--disable-dev-shm-usage", "--disable-extensions", "--no-default-browser-check"),
)
PATIENCE = 30.0
"""Seconds for an answer."""


def found() -> str:
    """Path of a browser; $NGD_BROWSER before what is installed."""
    names = [name for name in (os.environ.get("NGD_BROWSER"), *NAMES) if name]
    path = next(filter(None, map(shutil.which, names)), None)
    if path is None:
        msg = f"No browser: none of {', '.join(names)}; on Debian: apt-get install chromium."
        raise FileNotFoundError(msg)
    return path


class Browser:
    """One tab of one browser; a context manager."""

    def __init__(self) -> None:
        self.home = tempfile.TemporaryDirectory(ignore_cleanup_errors=True)
        (to_read, self.to_write), (self.to_read, to_write) = os.pipe(), os.pipe()
        # the protocol's descriptors in the browser are 3 and 4
        shell = f'exec "$@" 3<&{to_read} 4>&{to_write}'
        sandbox = ["--no-sandbox"] if os.geteuid() == 0 else []
        words = [found(), *FLAGS, *sandbox, f"--user-data-dir={self.home.name}"]
        self.process = subprocess.Popen(
            ["bash", "-c", shell, "bash", *words, "--remote-debugging-pipe", "about:blank"],
            pass_fds=(to_read, to_write),
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
        )
        os.close(to_read)
        os.close(to_write)
        self.number, self.session, self.events, self.rest = 0, {}, [], b""
        target = self.ask("Target.createTarget", url="about:blank")["targetId"]
        session = self.ask("Target.attachToTarget", targetId=target, flatten=True)["sessionId"]
        self.session = {"sessionId": session}
        for domain in ("Page", "Network", "Runtime", "Log"):
            self.ask(f"{domain}.enable")

    def __enter__(self) -> Browser:
        return self

    def __exit__(self, *_: object) -> None:
        self.session = {}
        self.ask("Browser.close")
        os.close(self.to_write)
        self.process.wait(timeout=PATIENCE)
        os.close(self.to_read)
        self.home.cleanup()

    def ask(self, method: str, **params: object) -> dict:
        """Result of one command; what is told meanwhile goes to `events`."""
        self.number += 1
        message = {"id": self.number, "method": method, "params": params, **self.session}
        os.write(self.to_write, json.dumps(message).encode() + b"\0")
        while (answer := self.heard()).get("id") != self.number:
            self.events.append(answer)
        if "error" in answer:
            msg = f"{method}: {answer['error']}"
            raise RuntimeError(msg)
        return answer["result"]

    def heard(self) -> dict:
        """One message."""
        last = time.monotonic() + PATIENCE
        while b"\0" not in self.rest:
            ready, _, _ = select.select([self.to_read], [], [], max(0.0, last - time.monotonic()))
            more = os.read(self.to_read, 2**16) if ready else b""
            if not more:
                msg = "The browser does not answer."
                raise RuntimeError(msg)
            self.rest += more
        message, _, self.rest = self.rest.partition(b"\0")
        return json.loads(message)

    def open(self, path: Path, width: int, height: int, scheme: str = "light") -> None:
        """Show a file at a width, in a colour scheme, and wait until it is there."""
        self.ask(
            "Emulation.setDeviceMetricsOverride",
            width=width,
            height=height,
            deviceScaleFactor=1,
            mobile=width < 600,
        )
        features = [{"name": "prefers-color-scheme", "value": scheme}]
        self.ask("Emulation.setEmulatedMedia", features=features)
        self.events.clear()
        self.ask("Page.navigate", url=path.resolve().as_uri())
        while not any(event.get("method") == "Page.loadEventFired" for event in self.events):
            self.events.append(self.heard())

    def value(self, script: str) -> object:
        """What an expression of the page is."""
        result = self.ask("Runtime.evaluate", expression=script, returnByValue=True)
        if "exceptionDetails" in result:
            raise RuntimeError(result["exceptionDetails"])
        return result["result"].get("value")

    def told(self, method: str) -> list[dict]:
        """Events of one kind since the page was opened."""
        return [event["params"] for event in self.events if event.get("method") == method]

    def picture(self, path: Path) -> None:
        """Write the whole page as a PNG."""
        taken = self.ask("Page.captureScreenshot", captureBeyondViewport=True)
        path.write_bytes(base64.b64decode(taken["data"]))
