"""A page as a real browser shows it, by way of the browser that kaleido finds."""

from __future__ import annotations

import asyncio
import base64
import logging
import os
import shutil
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import choreographer
import pytest

BROWSERS = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable", "chrome")

needs_browser = pytest.mark.skipif(
    "BROWSER_PATH" not in os.environ and not any(map(shutil.which, BROWSERS)),
    reason="a png, pdf or svg is drawn by a browser: install chromium",
)

WIDTH, HEIGHT = 1280, 860
PATIENCE_S = 90.0


@dataclass(frozen=True)
class Look:
    """A page to look at."""

    url: str
    until: str  # JavaScript that is true once the page shows what it is to show
    picture: Path | None = None
    before: str = ""  # JavaScript to run then, before text and picture are taken


def look(*looks: Look) -> list[str]:
    """Return the texts of pages, and write pictures of them."""
    # The browser's goodbye, where it is read, is told as an error.
    logging.getLogger("choreographer").setLevel(logging.CRITICAL)
    return asyncio.run(_look(looks))


async def _look(looks: tuple[Look, ...]) -> list[str]:
    texts = []
    async with choreographer.Browser(headless=True) as browser:
        tab = await browser.create_tab("about:blank")
        size = {"width": WIDTH, "height": HEIGHT, "deviceScaleFactor": 1, "mobile": False}
        await tab.send_command("Emulation.setDeviceMetricsOverride", params=size)
        for page in looks:
            await tab.send_command("Page.navigate", params={"url": page.url})
            deadline = time.monotonic() + PATIENCE_S
            while not await _evaluate(tab, f"Boolean({page.until})"):
                assert time.monotonic() < deadline, await _evaluate(tab, "document.body.innerText")
                await asyncio.sleep(0.1)
            if page.before:
                await _evaluate(tab, page.before)
            texts.append(await _evaluate(tab, "document.body.innerText"))
            if page.picture is not None:
                await asyncio.sleep(1.0)  # animations
                answer = await tab.send_command("Page.captureScreenshot", params={"format": "png"})
                page.picture.write_bytes(base64.b64decode(answer["result"]["data"]))
    return texts


async def _evaluate(tab: Any, expression: str) -> Any:
    # A page that is just being left has no document yet.
    asked = f"(() => {{ try {{ return {expression} }} catch {{ return null }} }})()"
    answer = await tab.send_command(
        "Runtime.evaluate", params={"expression": asked, "returnByValue": True}
    )
    return answer.get("result", {}).get("result", {}).get("value")
