"""Size of a landscape's report and time until a browser displays it, at 100,000 probes.

`python -m benchmarks.page_paint [PROBES]` draws a report on a generated landscape of eight concepts with photos of 300
pixels, opens it five times in Chromium without a network, and prints the bytes, the milliseconds to the first
contentful paint, and those until all charts are drawn, each as median and maximum. Takes a minute.
"""

from __future__ import annotations

import statistics
import sys
import tempfile
from pathlib import Path

import numpy as np
from playwright.sync_api import Browser, sync_playwright

from stages.concepts import Concept, ConceptSpace
from stages.pages import Gallery
from stages.tasks.contract import Exhibit
from tests.conftest import CHROMIUM, CHROMIUM_ARGS
from tests.report_samples import make_inputs, make_probes, picture, with_examples, write_landscape

CONCEPTS = tuple(Concept(name, (0, 1, 2, 3), neutral=0) for name in "abcdefgh")
VISITS = 5


def main(probes: int) -> None:
    """Draw the report, open it, and print the measurements."""
    inputs = make_inputs(*CONCEPTS)
    inputs["galleries"] = {
        mode: Gallery([Exhibit("", image=picture(k, 300)) for k in range(4)], [Exhibit("", image=picture(9, 300))] * 2)
        for mode in inputs["galleries"]
    }
    inputs = with_examples(inputs)
    inputs["probes"] = make_probes(ConceptSpace(CONCEPTS), inputs["landscape"], np.random.default_rng(0), probes // 2)
    inputs["probes"]["discrepancy"] = np.random.default_rng(1).random(len(inputs["probes"]))
    with tempfile.TemporaryDirectory() as folder, sync_playwright() as playwright:
        page = Path(folder) / "report.html"
        write_landscape(page, **inputs)
        browser = playwright.chromium.launch(executable_path=str(CHROMIUM), args=CHROMIUM_ARGS)
        times = [visit(browser, page) for _ in range(VISITS)]
        print(f"{page.stat().st_size:,} bytes with {probes:,} probes")
        for what, taken in zip(
            ("first paint with contents", "all charts drawn"), zip(*times, strict=True), strict=True
        ):
            print(f"{what}: {statistics.median(taken):,.0f} ms, at worst {max(taken):,.0f}")
        browser.close()


def visit(browser: Browser, page: Path) -> tuple[float, float]:
    """Return the milliseconds to the first contentful paint, and until all charts are drawn."""
    context = browser.new_context(offline=True, viewport={"width": 1400, "height": 900})
    opened = context.new_page()
    opened.goto(page.as_uri())
    opened.wait_for_selector("html[data-charts=drawn]", state="attached", timeout=60_000)
    drawn = opened.evaluate("performance.now()")
    paint = opened.evaluate("performance.getEntriesByName('first-contentful-paint')[0].startTime")
    context.close()
    return paint, drawn


if __name__ == "__main__":
    main(int(sys.argv[1]) if len(sys.argv) > 1 else 100_000)
