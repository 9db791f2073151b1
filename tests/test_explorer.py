"""Examples, maps and words of the pages: shown side by side, filtered, printed, and accessible."""

import csv
import io
import json
import re
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest

from flows.people.review.server import serve_review
from stages.concepts import ConceptSpace, Region
from stages.pages.figures import CHANGE_SCALE, POLICY_SCALE, RATE_SCALE, Scale, colour_at, ink_on
from stages.pages.page import pack_probes
from stages.records import PairedProbe
from stages.tasks.contract import Exhibit
from tests.picture_samples import picture_comparison, picture_landscape
from tests.report_samples import (
    FOUR,
    make_comparison,
    make_inputs,
    picture,
    plan_of,
    records_of,
    with_examples,
    write_comparison,
    write_landscape,
)
from tests.review_samples import make_review
from tests.test_report import unfold
from tests.text_samples import make_text_comparison


def comparison() -> dict[str, Any]:
    """A repair with an example of each outcome, inside and outside of its mode."""
    inputs = make_comparison(*FOUR[:2])
    made = [Exhibit("label 9 → predicted 7", image=picture(k)) for k in range(2)]
    fixed = PairedProbe(made[0], "7", "9", item="a", cell=(6, 0))
    broken = PairedProbe(made[1], "9", "4", item="b", cell=(0, 1))
    known = [PairedProbe(Exhibit("", image=picture(50 + k)), "9", "9", item=i, cell=(0, 0)) for k, i in enumerate("ab")]
    inputs["galleries"] = {"fixed": [fixed], "newly_failing": [broken], "unchanged": known}
    inputs["attributes"] = pd.DataFrame({"label": ["9", "9"]}, index=["a", "b"])
    plan = plan_of(*records_of(inputs["verdict"]))
    strong = plan.modes[0].model_copy(update={"region": Region({"rotation": (4, 5, 6)}).to_json()})
    inputs["plan"] = plan.model_copy(update={"modes": [strong]})
    return inputs


@pytest.fixture(scope="module")
def page(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("explorer") / "landscape.html"
    write_landscape(path, **with_examples(make_inputs(*FOUR)))
    return path


def card(text: str, name: str) -> str:
    return text.split(f'id="{name}"')[1].split("</figure>", maxsplit=1)[0]


def test_an_example_shows_what_it_was_made_of_and_what_was_changed(page: Path) -> None:
    shown = card(page.read_text(encoding="utf-8"), "M2.1")
    assert re.findall(r'class="soft">(.*?)</span>', shown) == ["unchanged", "changed"] and shown.count("<img") == 2
    levels = re.findall(r"<li>(\w+) <b>(.*?)</b>", shown)
    assert levels in ([("rotation", "50°")], [("rotation", "60°")]), "and nothing that changes nothing"
    facts = dict(re.findall(r"<dt>(.*?)</dt><dd>(.*?)</dd>", shown))
    assert facts == {"expected": "0", "answered": "7 (50%)", "discrepancy": "0.3"}
    assert "predicted" not in shown, "what was expected and came out is said once"


def test_an_example_of_a_repair_says_both_answers(tmp_path: Path) -> None:
    write_comparison(tmp_path / "page.html", **comparison())
    text = (tmp_path / "page.html").read_text(encoding="utf-8")
    facts = dict(re.findall(r"<dt>(.*?)</dt><dd>(.*?)</dd>", card(text, "F1")))
    assert facts == {"expected": "9", "before the repair": "7", "after the repair": "9"}
    assert "newly failing" in card(text, "N1") and card(text, "N1").count("<img") == 2
    rows = json.loads(text.split('id="examples-rows">')[1].split("</script>")[0])
    table = [dict(zip(rows["columns"], row, strict=True)) for row in rows["rows"]]
    told = [(row["id"], row["mode"], row["rotation"]) for row in table]
    assert told == [("F1", "M1", "60°"), ("N1", "outside all modes", "0°")]


def test_the_contents_use_the_words_of_the_headings(page: Path, tmp_path: Path) -> None:
    write_comparison(tmp_path / "page.html", **make_comparison(*FOUR))
    for path in (page, tmp_path / "page.html"):
        text = path.read_text(encoding="utf-8")
        links = re.findall(r'<a href="#(\w+)">([^<]*)</a>', text.split('aria-label="Contents">')[1].split("</nav>")[0])
        headings = re.findall(r'<section id="(\w+)"[^>]*>(?:<details><summary>)?\s*<h2>([^<]*?) ?<', text)
        assert len(links) > 8 and links == headings


@pytest.mark.parametrize("scale", [RATE_SCALE, CHANGE_SCALE, POLICY_SCALE])
def test_numbers_on_maps_are_read_on_any_colour(scale: Scale) -> None:
    def light(colour: tuple[int, ...]) -> float:
        parts = [c / 255 / 12.92 if c <= 10 else ((c / 255 + 0.055) / 1.055) ** 2.4 for c in colour]
        return float(np.dot(parts, (0.2126, 0.7152, 0.0722)))

    for share in np.linspace(0, 1, 300):
        colour = colour_at(scale, float(share))
        ink = 1.0 if ink_on(colour) == "#fff" else 0.0
        bright, dark = sorted((light(colour), ink), reverse=True)
        assert (bright + 0.05) / (dark + 0.05) >= 4.5


def test_probes_that_do_not_fit_are_sampled() -> None:
    space = ConceptSpace(FOUR[:2])
    rng = np.random.default_rng(0)
    probes = pd.DataFrame(space.sample(4000, rng), columns=space.names)
    probes = probes.assign(role="agent", item=[f"i{k}" for k in range(4000)], repeat=0, output="=1+1", failed=True)
    probes["discrepancy"] = rng.random(4000)
    whole, part = pack_probes(probes, space, 1_000_000), pack_probes(probes, space, 20_000)
    assert (whole.rows, whole.of) == (4000, 4000) and 1000 < part.rows < 4000 and 15_000 < len(part.data) <= 20_000
    assert pack_probes(probes, space, 20_000) == part


class TestInABrowser:
    @pytest.fixture(scope="class")
    def opened(self, browser: Any, page: Path):
        context = browser.new_context(offline=True, viewport={"width": 1200, "height": 900})
        opened = context.new_page()
        opened.goto(page.as_uri())
        unfold(opened)
        yield opened
        context.close()

    @pytest.fixture
    def shown(self, opened: Any) -> Any:
        """The page with nothing selected, kept open, as loading it again takes three seconds."""
        opened.locator(".explorer").evaluate(
            """(bar) => {
                for (const select of bar.querySelectorAll("select")) select.selectedIndex = 0;
                bar.dispatchEvent(new Event("input"));
                location.hash = "";
            }"""
        )
        return opened

    def choice(self, shown: Any, name: str) -> Any:
        return shown.locator(".explorer").get_by_label(name)

    def ids(self, shown: Any) -> list[str]:
        return shown.locator(".cases .exhibit:visible").evaluate_all("(all) => all.map((e) => e.id)")

    def test_examples_are_filtered_and_ordered(self, shown: Any) -> None:
        assert len(self.ids(shown)) == 18
        self.choice(shown, "mode").select_option("M2")
        self.choice(shown, "site").select_option("n")
        assert self.ids(shown) == ["M2.1", "M2.2", "M2.3"]
        assert shown.get_by_text("3 of 18 examples").is_visible() and not shown.locator("#mode-1").is_visible()
        self.choice(shown, "order").select_option("largest discrepancy first")
        assert self.ids(shown) == ["M2.3", "M2.1", "M2.2"]
        self.choice(shown, "outcome").select_option("passed")
        assert self.ids(shown) == []

    def test_what_is_shown_can_be_taken_along(self, shown: Any) -> None:
        self.choice(shown, "label").select_option("3")
        with shown.expect_download() as waiting:
            shown.get_by_role("button", name="Download these rows").click()
        rows = list(csv.DictReader(io.StringIO(Path(waiting.value.path()).read_text(encoding="utf-8"))))
        assert [row["id"] for row in rows] == ["M1.4", "M2.4", "M3.4"]
        assert rows[0]["answer"] == "7 (53%)" and rows[0]["discrepancy"] == "0.2" and rows[0]["rotation"].endswith("°")
        with shown.expect_download() as waiting:
            shown.get_by_role("button", name="Download all 2,400 probes").click()
        assert len(Path(waiting.value.path()).read_text(encoding="utf-8").splitlines()) == 2401

    def test_a_link_leads_to_one_example(self, shown: Any) -> None:
        self.choice(shown, "mode").select_option("M1")
        shown.evaluate("location.hash = '#M3.2'")
        shown.locator("#M3\\.2").wait_for(state="visible")
        assert shown.evaluate("document.activeElement.id") == "M3.2" and self.choice(shown, "mode").input_value() == ""


PAGES: dict[str, tuple[Callable[..., None], Callable[[], dict[str, Any]]]] = {
    "landscape": (write_landscape, lambda: with_examples(make_inputs(*FOUR))),
    "comparison of texts": (write_comparison, make_text_comparison),
    "landscape of pictures": (write_landscape, picture_landscape),
    "comparison of pictures": (write_comparison, picture_comparison),
}
SLOW = pytest.mark.slow
WIDTHS = (390, 1400)  # the first one while the page loads
ADDRESSES = """[...document.querySelectorAll("*")].flatMap((e) => [...e.attributes])
    .filter((a) => ["href", "xlink:href", "src", "action", "formaction", "ping", "data"].includes(a.name))
    .map((a) => a.value).filter((value) => !/^(#|data:|blob:)/.test(value))"""
# SVG elements have no `click()`.
CLICK_ALL = """document.querySelectorAll("a, button, summary, select, input, [role=button]")
    .forEach((e) => e.dispatchEvent(new MouseEvent("click", { bubbles: true, cancelable: true })))"""


def looked_at(page: Any) -> Iterator[int]:
    """Show an open page on a phone and on a desk, and check it with axe; yields the widths."""
    for width in WIDTHS:
        page.set_viewport_size({"width": width, "height": 900})
        check(page)
        yield width


@pytest.mark.parametrize("kind", [pytest.param(k, marks=[] if k == "comparison of texts" else SLOW) for k in PAGES])
def test_reports_are_open_to_everybody_and_lead_nowhere_else(browser: Any, tmp_path: Path, kind: str) -> None:
    write, inputs = PAGES[kind]
    write(tmp_path / "report.html", **inputs())
    scheme = "dark" if "comparison" in kind else "light"
    context = browser.new_context(viewport={"width": WIDTHS[0], "height": 900}, color_scheme=scheme)
    page = context.new_page()
    left: list[str] = []
    here = (tmp_path / "report.html").as_uri()
    context.on("request", lambda r: None if r.url.startswith((here, "data:", "blob:")) else left.append(r.url))
    context.on("page", lambda opened: left.append(f"a window: {opened.url}"))
    page.on("websocket", lambda socket: left.append(socket.url))
    page.on("pageerror", lambda error: left.append(str(error)))
    page.goto(here)
    unfold(page)
    contents = page.locator("nav[aria-label=Contents]")
    plain = page.locator(".scroll:has(table:not(.sheet))")
    hidden = "(all) => all.filter((e) => e.scrollWidth > e.clientWidth + 1).length"
    for width in looked_at(page):
        assert page.evaluate("document.documentElement.scrollWidth") <= width
        assert width == 390 or contents.evaluate("(nav) => nav.scrollWidth <= nav.clientWidth"), "in several lines"
        assert width > 390 or plain.evaluate_all(hidden) == 0, "a column is out of sight"
    for _ in range(2):  # also elements that the first clicks created
        page.evaluate(CLICK_ALL)
        page.wait_for_timeout(300)
    assert page.evaluate(ADDRESSES) == []
    assert page.evaluate("location.href").partition("#")[0] == here and left == []
    context.close()


@SLOW
@pytest.mark.parametrize("kind", ["digits", "texts"])
def test_the_review_page_is_open_to_everybody(
    browser: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, kind: str
) -> None:
    make_review(tmp_path, monkeypatch, kind)
    with serve_review(["x"], port=0) as server:
        context = browser.new_context(color_scheme="dark")
        opened = context.new_page()
        opened.goto(server.link("x"))
        assert tuple(looked_at(opened)) == WIDTHS
        opened.locator(".explorer").get_by_label("outcome").select_option("passed")
        assert opened.locator(".rated:visible").count() == 15
        context.close()


def check(page: Any) -> None:
    axe = pytest.importorskip("axe_playwright_python.sync_playwright", reason="axe is not installed (extra: dev)")
    found = axe.Axe().run(page).response["violations"]
    assert [(one["id"], [node["html"] for node in one["nodes"]]) for one in found] == []
