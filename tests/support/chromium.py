"""The browser of the page tests. `python -m tests.support.chromium` installs it where it is missing; `make test` runs that."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

MISSING = (
    "There is no Chromium, which the page tests need: apt install chromium, or .venv/bin/playwright install chromium"
)


def find_chromium(playwright: Any) -> str | None:
    """The system's browser, or the one that Playwright has installed."""
    candidates = (shutil.which("chromium"), shutil.which("google-chrome"), playwright.chromium.executable_path)
    return next((path for path in candidates if path and Path(path).exists()), None)


def install() -> None:
    """By apt where that is possible; Playwright's own download host is not reachable from everywhere."""
    if os.geteuid() == 0 and shutil.which("apt-get"):
        environment = os.environ | {"DEBIAN_FRONTEND": "noninteractive"}
        commands = [
            ["apt-get", "update", "-qq"],
            ["apt-get", "install", "-y", "-qq", "--no-install-recommends", "chromium"],
        ]
    else:
        environment, commands = dict(os.environ), [[sys.executable, "-m", "playwright", "install", "chromium"]]
    for command in commands:
        subprocess.run(command, env=environment, stdout=subprocess.DEVNULL)  # what is missing afterwards is said then


def main() -> None:
    from playwright.sync_api import sync_playwright

    with sync_playwright() as started:
        if find_chromium(started) is None:
            print("Installing Chromium for the page tests", flush=True)
            install()
        if find_chromium(started) is None:
            sys.exit(MISSING)


if __name__ == "__main__":
    main()
