"""Pictures for docs/results.md: the top of the newest report of each audit, as displayed by Chromium.

    .venv/bin/python -m benchmarks.gallery [AUDIT...]

Reads the reports in this workspace's data/, by default of all audits that have one, without running anything. Writes
docs/assets/report-of-AUDIT.png.
"""

import io
import sys
from collections.abc import Collection
from pathlib import Path

from PIL import Image
from playwright.sync_api import sync_playwright

from tests.conftest import CHROMIUM, CHROMIUM_ARGS

ASSETS = Path(__file__).parents[1] / "docs" / "assets"
_WIDTH = 1100  # pixels of the browser's window
_MARGIN = 24
_COLOURS = 128


def main(audits: Collection[str]) -> None:
    """Take a picture of the top of each report."""
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=str(CHROMIUM), args=CHROMIUM_ARGS)
        page = browser.new_page(viewport={"width": _WIDTH, "height": 900})
        for folder in sorted(Path("data").iterdir()):
            reports = [folder / stage / "report.html" for stage in ("conclude", "report")]
            found = next((report for report in reports if report.exists()), None)
            if found is None or (audits and folder.name not in audits):
                continue
            page.goto(found.resolve().as_uri())
            box = page.locator(".first").bounding_box()
            assert box is not None
            clip = {"x": 0, "y": 0, "width": _WIDTH, "height": box["y"] + box["height"] + _MARGIN}
            picture = Image.open(io.BytesIO(page.screenshot(full_page=True, clip=clip)))
            few = picture.convert("RGB").quantize(_COLOURS)  # as git stores every version
            few.save(ASSETS / f"report-of-{folder.name}.png", optimize=True)
            print(found)
        browser.close()


if __name__ == "__main__":
    main(sys.argv[1:])
