"""Debian's Chromium, driven by Playwright; no browser is downloaded."""

import shutil

from playwright.async_api import Browser, Playwright

from tests.requirements import missing

CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser")


def require_chromium() -> str:
    """Where the browser is; without one the test is skipped, and fails in CI."""
    if CHROMIUM is None:
        missing("chromium is missing: install it (Debian: apt-get install chromium)")
    return CHROMIUM


async def launch(driver: Playwright) -> Browser:
    """A fresh headless browser."""
    return await driver.chromium.launch(
        executable_path=require_chromium(),
        # A container's root has no namespaces for Chromium's own sandbox, and little shared memory.
        args=["--no-sandbox", "--disable-dev-shm-usage"],
    )
