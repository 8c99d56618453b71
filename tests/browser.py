"""A real browser without a window for the tests: ``with chromium() as browser`` or the fixture
``browser``.
"""

import os
import shutil
from contextlib import contextmanager

import pytest

NAMES = ["chromium", "chromium-browser", "google-chrome"]


@contextmanager
def chromium():
    """A playwright ``Browser`` on the Chromium of this machine; skips where there is none."""
    path = next(filter(None, map(shutil.which, NAMES)), None)
    if path is None:
        pytest.skip(
            f"no browser on PATH, looked for {', '.join(NAMES)}; on Debian 'apt install chromium'"
            " adds one"
        )
    from playwright.sync_api import sync_playwright

    with sync_playwright() as playwright:
        # Chromium refuses its sandbox to root, as in a container.
        browser = playwright.chromium.launch(
            executable_path=path, args=["--no-sandbox"] if os.geteuid() == 0 else []
        )
        yield browser
        browser.close()


@pytest.fixture(
    scope="module"
)  # each module imports a fixture of its own, and playwright runs once at a time
def browser():
    with chromium() as made:
        yield made
