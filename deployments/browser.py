"""Headless Chromium, for pictures of the UI and for tests of it."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

from blocks.errors import NotFound

if TYPE_CHECKING:
    from playwright.sync_api import BrowserContext

INSTALL = (
    "apt-get update && apt-get install --yes --no-install-recommends "
    "chromium fonts-noto-cjk libatomic1"
)

# No sandbox: it needs what containers do not have. The rest keeps Chromium quiet offline.
_OPTIONS = [
    "--no-sandbox",
    "--disable-gpu",
    "--disable-quic",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
]
_DEADLINE_MS = 30_000


def chromium_path() -> Path:
    """Return where Chromium is installed.

    Raises:
        NotFound: It is not.
    """
    for name in ("chromium", "chromium-browser", "google-chrome"):
        if found := shutil.which(name):
            return Path(found)
    raise NotFound("it is not installed", "Chromium", f"Run as root: {INSTALL}")


@contextmanager
def browser(*, width: int = 1280, height: int = 900) -> Iterator[BrowserContext]:
    """Open headless Chromium for the length of a block.

    Args:
        width: Of the window, in pixels.
        height: Of the window, in pixels.

    Yields:
        A browser context; every wait in it has a deadline of 30 s.
    """
    from playwright.sync_api import sync_playwright

    executable = chromium_path()
    with sync_playwright() as playwright:
        chromium = playwright.chromium.launch(executable_path=executable, args=_OPTIONS)
        try:
            context = chromium.new_context(viewport={"width": width, "height": height})
            context.set_default_timeout(_DEADLINE_MS)
            yield context
        finally:
            chromium.close()
