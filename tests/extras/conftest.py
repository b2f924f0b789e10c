"""A real browser for the pages."""

import shutil

import pytest

FLAGS = ["--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run", "--disable-background-networking"]
FLAGS += ["--disable-component-update", "--disable-sync"]
PATIENCE = 120_000  # milliseconds


@pytest.fixture(scope="module")
def browser():
    """A function that opens a page in Chromium, which is patient."""
    sync_api = pytest.importorskip("playwright.sync_api", reason="Playwright is not installed")
    if not (chromium := shutil.which("chromium")):
        pytest.skip("there is no Chromium on this machine (Debian's package chromium)")
    with sync_api.sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=chromium, args=FLAGS, timeout=PATIENCE)

        def open_page(**settings):
            page = browser.new_page(**settings)
            page.set_default_timeout(PATIENCE)
            return page

        yield open_page
        browser.close()
