"""A running dashboard and a real headless Chromium; skipped with the reason where there is none."""

import os
import shutil
import socket
import subprocess
import sys
import time
import urllib.request
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
SIZES = {"1440x900": (1440, 900), "1024x768": (1024, 768)}
ARGUMENTS = [
    "--headless",
    "--no-sandbox",
    "--disable-gpu",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
    "--no-first-run",
]
_BROWSERS = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable")

sync_api = pytest.importorskip("playwright.sync_api", reason="playwright is not installed")


def chromium() -> str | None:
    """The browser of this machine: NMKE_CHROMIUM, or the first one on the path."""
    return os.environ.get("NMKE_CHROMIUM") or next(filter(None, map(shutil.which, _BROWSERS)), None)


@pytest.fixture(scope="session")
def server() -> Iterator[str]:
    """The address of a dashboard of its own, with the user's model cache (NMKE_HOME)."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    command = [sys.executable, "-m", "streamlit", "run", "dashboard/app.py"]
    options = ["--server.headless=true", f"--server.port={port}", "--server.fileWatcherType=none"]
    process = subprocess.Popen([*command, *options], cwd=ROOT, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE)
    address = f"http://127.0.0.1:{port}"
    try:
        for _ in range(240):
            if process.poll() is not None:
                assert process.stderr is not None
                pytest.fail(f"the dashboard did not start: {process.stderr.read().decode()[-2000:]}")
            try:
                with urllib.request.urlopen(f"{address}/_stcore/health", timeout=2):
                    break
            except OSError:
                time.sleep(0.25)
        yield address
    finally:
        process.terminate()
        process.wait(10)


@pytest.fixture(scope="session")
def browser() -> Iterator["sync_api.Browser"]:
    """Chromium, started once."""
    path = chromium()
    if path is None:
        pytest.skip("no Chromium on this machine; set NMKE_CHROMIUM to its path")
    with sync_api.sync_playwright() as play:
        found = play.chromium.launch(executable_path=path, args=ARGUMENTS)
        yield found
        found.close()


@pytest.fixture
def visit(browser: "sync_api.Browser", server: str) -> Iterator["sync_api.Page"]:
    """The dashboard opened in a tab of its own."""
    context = browser.new_context(viewport={"width": 1440, "height": 900}, reduced_motion="reduce")
    page = context.new_page()
    page.goto(server)
    yield page
    context.close()
