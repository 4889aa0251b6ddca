"""The documents' site finds words when it is opened from disk, without a server."""

import os
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parents[2]


def test_a_word_is_found_from_disk(chromium, tmp_path):
    subprocess.run(
        [sys.executable, "-m", "mkdocs", "build", "--quiet", "--site-dir", str(tmp_path)],
        cwd=ROOT,
        env=os.environ | {"NO_MKDOCS_2_WARNING": "1"},
        check=True,
        timeout=120,
    )
    page = chromium.new_page()
    page.goto((tmp_path / "recipes" / "model.html").as_uri() + "?q=heartbeat")
    page.locator('.md-search-result__link[href*="glossary.html"]').first.wait_for(state="attached")
