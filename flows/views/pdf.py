"""The first page of a report as a PDF, printed by the user's Chromium."""

import os
import shutil
import subprocess
import tempfile
from pathlib import Path

from stages.core.errors import InfrastructureError, UsageError
from stages.core.files import replace_file

BROWSERS = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable", "chrome", "msedge")
SECONDS = 120


def print_summary(page: Path, out: Path) -> None:
    """Print the first page of a report as a PDF, which appears whole or not at all.

    Raises a UsageError if no browser is found, and an InfrastructureError if it prints nothing.
    """
    browser = next((found for name in BROWSERS if (found := shutil.which(name))), None)
    if browser is None:
        raise UsageError(
            f"--pdf needs Chromium or Chrome, found none of {', '.join(BROWSERS)}; or open {page.resolve()}#summary in"
            " any browser and print it"
        )
    with tempfile.TemporaryDirectory() as folder:
        printed = Path(folder) / "summary.pdf"
        command = [browser, "--headless", "--disable-gpu", "--no-first-run", f"--user-data-dir={folder}/profile"]
        # Chromium refuses to sandbox what root starts; the page may only run its own scripts.
        command += ["--no-sandbox"] if getattr(os, "geteuid", lambda: 1)() == 0 else []
        command += ["--no-pdf-header-footer", f"--print-to-pdf={printed}", f"{page.resolve().as_uri()}#summary"]
        try:
            done = subprocess.run(command, capture_output=True, text=True, timeout=SECONDS, check=False)
        except (OSError, subprocess.TimeoutExpired) as error:
            raise InfrastructureError(f"{browser} did not print {page}: {error}") from None
        if done.returncode or not printed.exists():
            last = (done.stderr.strip().splitlines() or ["it said nothing"])[-1]
            raise InfrastructureError(f"{browser} did not print {page}: {last}")
        replace_file(out, printed.read_bytes())
