"""The reports: self-contained, deterministic, safe with hostile text, and working in a browser."""

import io
import json
import re
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pandas as pd
import pytest

from stages.concepts import Concept, ConceptSpace, Region
from stages.pages.maps import _about_view, marginal
from stages.tasks.contract import Exhibit
from tests.finished import faded, finished_audits
from tests.picture_samples import picture_landscape
from tests.report_samples import (
    FOUR,
    HOSTILE,
    WEATHER,
    cells_of,
    charts,
    comparison_html,
    landscape_html,
    make_comparison,
    make_inputs,
    picture,
    section,
    shelf,
    write_comparison,
    write_landscape,
)
from tests.text_samples import make_text_comparison, make_text_inputs

UNCHANGED = {"value": 0.75, "low": 0.53, "high": 0.88, "n": 20}


@pytest.fixture(scope="module")
def paths(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    folder = tmp_path_factory.mktemp("reports")
    write_landscape(folder / "landscape.html", **make_inputs(*FOUR))
    write_comparison(folder / "comparison.html", **make_comparison(*FOUR))
    return {name: folder / f"{name}.html" for name in ("landscape", "comparison")}


@pytest.fixture(scope="module")
def pages(paths: dict[str, Path]) -> dict[str, str]:
    return {name: path.read_text(encoding="utf-8") for name, path in paths.items()}


def test_a_map_names_the_modes_that_are_not_on_it_but_not_those_about_items_alone():
    modes = {"M1": Region({}, {"label": ("9",)}), "M2": Region({"fog": (1,)})}
    modes["M3"] = Region({"tilt": (1,), "fog": (0,)})
    assert _about_view(["tilt"], modes) == "Dashed: M3 has further conditions. Not on this map: M2."


def test_the_terminal_says_so_too(tmp_path: Path) -> None:
    workspace = finished_audits().copy(tmp_path / "ws")
    copy = workspace.path / ".faded/reports/other/report.html"  # which says of when the result is
    assert faded(workspace, "report", "other", "--no-open")[1].endswith(f"\n{copy}\n")
    landscape = workspace.path / "data/other/summarize/landscape.json"
    known = json.loads(landscape.read_text()) | {"unchanged": UNCHANGED}
    landscape.unlink()  # a link into the cache
    landscape.write_text(json.dumps(known))
    said = "other: 15 of 20 unchanged items fail already, 75.0%, 95% interval 53.0% to 88.0%"
    code, told = faded(workspace, "report", "other", "--no-open")
    assert code == 0 and told.startswith(f"{said}\nother: Result of ") and told.endswith(f"\n{copy}\n")


@pytest.mark.parametrize("name", ["landscape", "comparison"])
def test_one_small_file_that_asks_for_nothing(pages: dict[str, str], name: str) -> None:
    assert len(pages[name].encode()) < 400_000 and "default-src 'none'" in pages[name]
    assert not re.findall(r"""(?:src|href)=["'](?!data:|#)[^"']*""", pages[name])


def test_large_images_do_not_make_a_large_file(tmp_path: Path) -> None:
    inputs = make_inputs(*FOUR[:2])
    noisy = [Exhibit(f"crop {k}", image=picture(k, side=300)) for k in range(8)]
    assert sum(len(e.image or b"") for e in noisy) * 3 > 1_000_000
    inputs["galleries"] = {m: shelf(m, noisy, noisy) for m in ("M1", "M2", "M3")}
    page = landscape_html(tmp_path, **inputs)
    assert len(page) < 3_000_000
    assert page.count("data:image/jpeg;base64,") == 48 + 3, "those of the first page are there twice"


def test_same_inputs_give_the_same_bytes(pages: dict[str, str], tmp_path: Path) -> None:
    assert landscape_html(tmp_path, **make_inputs(*FOUR)) == pages["landscape"]
    assert comparison_html(tmp_path, **make_comparison(*FOUR)) == pages["comparison"]


def hostile_space() -> tuple[Concept, ...]:
    named = Concept(HOSTILE, (0, 1, 2))
    return named, Concept("%{x}</script><img src=x onerror=alert(1)>", (HOSTILE, "<b>b</b>", "$c$"), ordered=False)


def test_hostile_text_is_shown_as_text(tmp_path: Path) -> None:
    for page in (
        landscape_html(tmp_path, **make_inputs(*hostile_space(), hostile=True, images=False)),
        comparison_html(tmp_path, **make_comparison(*hostile_space(), hostile=True)),
        landscape_html(tmp_path, **make_text_inputs(hostile=True)),
        comparison_html(tmp_path, **make_text_comparison(hostile=True)),
        landscape_html(tmp_path, **picture_landscape(hostile=True)),
    ):
        assert "<script>alert" not in page and "<img src=x" not in page
        assert "&lt;script&gt;alert(1)&lt;/script&gt;" in page
        assert len(re.findall("<script", page)) == len(re.findall("</script>", page))
    assert "&lt;script&gt;" in section(page, "bias")


def test_every_number_of_a_mode_is_in_the_page(tmp_path: Path) -> None:
    inputs = make_inputs(*FOUR)
    page = landscape_html(tmp_path, **inputs)
    for mode in inputs["summary"]["modes"]:
        assert cells_of(page, "modes", rf'<a href="#mode-\d+">{mode["id"]}</a>')[:5] == [
            mode["text"].replace(">", "&gt;"),
            f"{mode['rate']:.1%} ({100 * mode['low']:.1f}–{100 * mode['high']:.1f}%)",
            f"{mode['failures']} / {mode['probes']}",
            f"{mode['lift']:.2g}×",
            f"{mode['share']:.1%}",
        ]


@pytest.mark.parametrize("concepts", [FOUR[:1], (WEATHER,), (FOUR[0], WEATHER), (FOUR[0], WEATHER, FOUR[1])])
def test_spaces_of_one_to_three_concepts(tmp_path: Path, concepts: tuple[Concept, ...]) -> None:
    pairs = max(1, len(concepts) * (len(concepts) - 1) // 2)
    assert len(charts(section(landscape_html(tmp_path, **make_inputs(*concepts, images=False)), "landscape"))) == pairs
    sides = 2 if len(concepts) == 1 else 3  # and the change
    assert len(charts(section(comparison_html(tmp_path, **make_comparison(*concepts)), "landscape"))) == sides * pairs


def test_what_is_missing_is_left_out(tmp_path: Path) -> None:
    inputs, comparison = make_inputs(*FOUR[:2]), make_comparison(*FOUR[:2])
    full = landscape_html(tmp_path, **inputs)
    nothing = {"galleries": {}, "probes": inputs["probes"].iloc[:0]}
    page = landscape_html(tmp_path, **inputs | nothing | {
        "summary": inputs["summary"] | {"effects": [], "modes": [], "robustness": None, "search": {}},
        "landscape": inputs["landscape"].assign(policy_mean=np.nan, policy_std=np.nan),
        "verdict": {"audit": "mnist", "passed": None, "gates": []},
        "provenance": {}, "skipped": [], "nearest": [],
    })  # fmt: skip
    for name in ("gates", "effects", "robustness", "search", "policy", "skipped", "provenance"):
        assert f'<section id="{name}"' in full and f'<section id="{name}"' not in page
    moved = {"failures_moved": {"found": False, "regions": []}}
    bare = comparison["verdict"] | {"passed": None, "gates": [], "modes": [], "search": {}, **moved}
    nothing["probes"] = comparison["probes"].iloc[:0]
    page = comparison_html(tmp_path, **comparison | nothing | {"verdict": bare})
    assert not [name for name in ("gates", "search", "examples") if f'<section id="{name}"' in page]
    assert "No region was found in which the repaired model fails" in page


def test_a_rule_is_never_passed_off_as_a_person(pages: dict[str, str], tmp_path: Path) -> None:
    assert "<dd>a rule, not a person</dd>" in pages["comparison"]
    decided = make_comparison(*FOUR[:1])
    decided["verdict"] |= {"decided_by": "human", "reviewer": "Ada", "reason": "patients"}
    page = comparison_html(tmp_path, **decided)
    assert "<dd>Ada: “patients”</dd>" in page and "a rule, not" not in page


def test_every_number_of_a_comparison_is_in_the_page(pages: dict[str, str]) -> None:
    page = pages["comparison"]
    target = ["51.8%", "22.9%", "−28.9  −32.0 to −26.0", "31.6%", "−20.2  −23.0 to −17.0", "3,000"]
    assert cells_of(page, "differences", "target modes: failure rate") == target
    newly = ["–", "2.4%", "–  1.9–3.0%", "–", "–", "3,000"]
    assert cells_of(page, "differences", "newly failing: passed before, fails now") == newly
    assert cells_of(page, "gates", "newly failing") == ["≤ 2.0%", "2.4%", "1.9–3.0%", "✗ fail"]
    reduced = ["51.8%", "22.9%", "−28.9", "−32.0 to −26.0", "yes", "yes"]
    assert cells_of(page, "reduced", "chosen modes") == reduced
    assert cells_of(page, "moved", "darkening &gt;= 0.9")[:3] == ["10.0%", "17.0%", "+7.0  +2.0 to +10.0"]
    assert "Aiming the repair helped: −8.7 points (" in page and "data/mnist/report/report.html" in page
    assert cells_of(page, "differences", "clean accuracy")[:2] == ["96.7%", "95.6%"]
    lies, amount = page.split('<div class="shift">')[1:]
    assert "moved more than chance explains." in lies and "moved 0.091" in lies and "by chance 0.021 to 0.033" in lies
    assert "chance may explain it." in amount and "by chance 0.025 to 0.21" in amount
    assert cells_of(page, "skipped", r"img-17\.png") == ["truncated"]


def test_what_is_only_suspected_is_folded_and_in_no_mode_table(tmp_path: Path) -> None:
    inputs = make_inputs(*FOUR[:2], images=False)
    page = landscape_html(tmp_path, **inputs)
    before, folded = page.split("<details><summary>Suspected, not confirmed: 2 regions</summary>")
    asked, unasked = (row.split("</tr>")[0] for row in folded.split('<tr><td class="text">')[1:3])
    for region, row in zip(inputs["summary"]["suspected"], (asked, unasked), strict=True):
        text = region["text"].replace(">", "&gt;")
        assert row.startswith(text) and f">{text}</td>" not in before
        assert f"{region['estimate']:.1%}" in row and f"{region['failures']} / {region['probes']}" in row
    assert "27.5%" in asked and "14.6–43.9%" in asked and "not probed" in unasked


def test_the_bound_on_what_was_not_shown_is_said_below_the_modes_and_on_the_first_page(tmp_path: Path) -> None:
    inputs = make_inputs(*FOUR[:2], images=False)
    page = landscape_html(tmp_path, **inputs)
    assert page.count("at most 1.2% of uses fail outside the failure modes") == 2
    assert "at most 1.2% of uses fail outside" in section(page, "modes")
    inputs["summary"]["modes"] = []
    assert "at most 1.2% of uses fail in ways" in landscape_html(tmp_path, **inputs | {"galleries": {}})
    del inputs["verdict"]["unshown"]
    assert "at most 1.2%" not in landscape_html(tmp_path, **inputs | {"galleries": {}})


def test_the_curve_of_a_concept_is_that_of_its_levels_alone(tmp_path: Path) -> None:
    inputs = make_inputs(*FOUR[:2], images=False)
    page = landscape_html(tmp_path, **inputs)
    part = section(page, "effects")
    assert "while everything else is unchanged" in part and "Dotted: the items that a failure mode is about" in part
    first, second = charts(part).values()
    for line in ("all items", "label 9", "any other label"):
        assert f">{line}</text>" in first and line not in second
    assert re.findall(r"<title>rotation (\S+): (\S+) fail", first) == [
        (f"{10 * j}°", f"{10 * (j + 1)}.0%") for _ in range(3) for j in range(7)
    ]
    first = inputs["summary"]["effects"][0]
    row = ["0°", "10.0%", "5.0–18.2%", "40", f"{first['rate']:.1%}", ""]
    assert cells_of(page, "effects", "rotation")[:6] == row, "alone, and beside it the average in use"
    assert cells_of(page, "effects", "rotation, any other label")[:4] == ["0°", "10.0%", "–", "30"]

    rarely = [one | {"probes": 0, "rate": None, "low": None, "high": None} for one in inputs["summary"]["alone"]]
    inputs["summary"]["alone"] = rarely[:-3] + inputs["summary"]["alone"][-3:]
    page = landscape_html(tmp_path, **inputs)
    assert "averaged over everything else as it occurs in use, with" in page, "too few levels were probed alone"
    assert cells_of(page, "effects", "rotation")[1] == f"{first['rate']:.1%}"


def test_marginals_average_rates_by_use_and_add_counts() -> None:
    space = ConceptSpace((Concept("a", (0, 1)), Concept("b", (0, 1, 2))))
    table = pd.DataFrame(space.cells(), columns=space.names).assign(rate=[0.0, 0.3, 0.6, 1.0, 1.0, 0.7], probes=1)
    table["use"] = 1 / 6
    assert marginal(table, space, ["a"])["rate"].tolist() == pytest.approx([0.3, 0.9])
    assert marginal(table, space, ["b"])["probes"].tolist() == [2, 2, 2]
    table["use"] = [0.5, 0.1, 0.1, 0.1, 0.1, 0.1]
    assert marginal(table, space, ["a"])["rate"].tolist() == pytest.approx([0.09 / 0.7, 0.9])
    assert marginal(table, space, ["a", "b"])["rate"].tolist() == pytest.approx(table["rate"].tolist())
    assert marginal(table.iloc[:1], space, ["b", "a"])["rate"].isna().sum() == 5


class Opened(NamedTuple):
    page: Any
    errors: list[str]


def opened(browser: Any, path: Path, **how: Any) -> Opened:
    """The page offline, with everything unfolded."""
    page = browser.new_context(offline=True, viewport={"width": 1200, "height": 900}, **how).new_page()
    errors: list[str] = []
    page.on("console", lambda message: errors.append(message.text) if message.type == "error" else None)
    page.on("pageerror", lambda error: errors.append(str(error)))
    page.on("dialog", lambda dialog: (errors.append(f"dialog: {dialog.message}"), dialog.dismiss()))
    page.on("request", lambda r: None if r.url.startswith(("file:", "data:", "blob:")) else errors.append(r.url))
    page.goto(path.as_uri())
    return Opened(page, errors)


def unfold(page: Any) -> None:
    page.evaluate("() => document.querySelectorAll('details').forEach((d) => (d.open = true))")


@pytest.mark.parametrize("name", ["landscape", "comparison"])
def test_charts_need_no_script_and_a_page_is_short(browser: Any, paths: dict[str, Path], name: str) -> None:
    pypdf = pytest.importorskip("pypdf", reason="pypdf is not installed (extra: dev)")
    page, errors = opened(browser, paths[name], java_script_enabled=False, color_scheme="dark")
    assert page.evaluate("() => document.documentElement.scrollHeight") <= 6_000
    printed = pypdf.PdfReader(io.BytesIO(page.pdf(format="A4"))).pages
    assert len(printed) <= 8
    said = " ".join(" ".join(one.extract_text() for one in printed).split())
    seen = [chart for chart in page.locator(".chart").all() if chart.is_visible()]
    assert len(seen) >= 3
    for chart in seen:
        assert all(text in said for text in chart.locator("svg > text").all_text_contents())
    unfold(page)
    sizes = page.locator(".chart svg").evaluate_all("(all) => all.map((one) => one.getBoundingClientRect().height)")
    assert len(sizes) == page.locator(".chart").count() > len(seen) and min(sizes) > 60 and errors == []
    page.context.close()


def test_a_link_unfolds_what_it_leads_to(browser: Any, paths: dict[str, Path]) -> None:
    page, errors = opened(browser, paths["landscape"])
    assert not page.locator("#mode-2").is_visible() and not page.locator("#search table").is_visible()
    for link, place in (("#search", "#search table"), ("#mode-2", "#mode-2 h3")):
        page.locator(f'a[href="{link}"]').first.click()
        page.locator(place).first.wait_for(state="visible")
    assert errors == []
    page.context.close()


def test_hostile_text_does_not_run(browser: Any, tmp_path: Path) -> None:
    landscape_html(tmp_path, **make_inputs(*hostile_space(), hostile=True, images=False))
    page, errors = opened(browser, tmp_path / "landscape.html")
    unfold(page)
    page.locator(".chart").nth(1).hover()
    assert errors == [] and page.locator("img").count() == 0 and page.locator("h1").inner_text() == HOSTILE
