"""Nothing in a report leaves the page: no link, button or request, whatever is clicked."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from tests.picture_samples import picture_comparison, picture_landscape
from tests.report_samples import FOUR, make_comparison, make_inputs, write_comparison, write_landscape
from tests.test_report import draw_all
from tests.text_samples import make_text_comparison, make_text_inputs

REPORTS: dict[str, tuple[Callable[..., None], Callable[[], dict[str, Any]]]] = {
    "landscape": (write_landscape, lambda: make_inputs(*FOUR[:3])),
    "comparison": (write_comparison, lambda: make_comparison(*FOUR[:3])),
    "landscape of texts": (write_landscape, make_text_inputs),
    "comparison of texts": (write_comparison, make_text_comparison),
    "landscape of pictures": (write_landscape, picture_landscape),
    "comparison of pictures": (write_comparison, picture_comparison),
}
ADDRESSES = """[...document.querySelectorAll("*")].flatMap((e) => [...e.attributes])
    .filter((a) => ["href", "xlink:href", "src", "action", "formaction", "ping", "data"].includes(a.name))
    .map((a) => a.value).filter((value) => !/^(#|data:|blob:)/.test(value))"""
# SVG elements have no `click()`.
CLICK_ALL = """document.querySelectorAll("a, button, summary, select, input, [role=button], .modebar-btn, [data-title]")
    .forEach((e) => e.dispatchEvent(new MouseEvent("click", { bubbles: true, cancelable: true })))"""


@pytest.mark.parametrize("kind", [pytest.param(k, marks=[pytest.mark.slow] if " " in k else []) for k in REPORTS])
def test_no_control_of_a_report_leads_off_the_page(browser: Any, tmp_path: Path, kind: str) -> None:
    write, inputs = REPORTS[kind]
    write(tmp_path / "report.html", **inputs())
    context = browser.new_context(viewport={"width": 1100, "height": 900})
    page = context.new_page()
    left: list[str] = []
    here = (tmp_path / "report.html").as_uri()
    context.on("request", lambda r: None if r.url.startswith((here, "data:", "blob:")) else left.append(r.url))
    context.on("page", lambda opened: left.append(f"a window: {opened.url}"))
    page.on("websocket", lambda socket: left.append(socket.url))
    page.goto(here)
    draw_all(page)
    if page.locator(".gl-container").count():
        assert page.locator(".modebar-btn").count() > 1  # the chart library's buttons are included
    for _ in range(2):  # also elements that the first clicks created
        page.evaluate(CLICK_ALL)
        page.wait_for_timeout(300)
    assert page.evaluate(ADDRESSES) == []
    assert page.evaluate("location.href").partition("#")[0] == here and left == []
    assert "cloud" not in page.locator("body").inner_text().lower()
    context.close()
