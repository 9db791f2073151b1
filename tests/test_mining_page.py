"""The page of mining results: one file that agrees with the record, is accessible, and escapes hostile texts."""

from __future__ import annotations

import re

import pytest

pytest.importorskip("textblob")
pytest.importorskip("lemminflect")

from flows.choosing.mine.catalogue import EXAMPLES, catalogue
from stages.mining import MinedExample, MineSettings, Mining
from stages.mining.mine import mine
from stages.pages.words import interval, percent
from stages.params import AuditConfig
from tests.planted_words import SPACE, Planted, hide, texts
from tests.report_samples import HOSTILE
from tests.test_explorer import check
from tests.workspace import audit_params

AUDIT = AuditConfig.model_validate(audit_params(task="chat"))


@pytest.fixture(scope="module")
def mining() -> Mining:
    """The mining of a model with ten weaknesses, plus a candidate for each of two further verdicts."""
    items = texts(150, 0)
    model = Planted(items, hide(items, 0, put_in=3, said=2, attributes=2))
    found = mine(items, SPACE, model, MineSettings(probes=600), seed=0)
    last = found.findings[-1]
    untested = {"verdict": "no probes left", "fails": None, "without": [], "examples": [], "probes": 0}
    more = [last.model_copy(update=change) for change in ({"verdict": "not confirmed", "probes": 0}, untested)]
    return found.model_copy(update={"findings": [*found.findings, *more]})


@pytest.fixture(scope="module")
def page(mining, tmp_path_factory):
    """The page of this mining."""
    path = tmp_path_factory.mktemp("page") / "page.html"
    path.write_text(catalogue("support", AUDIT, 0.0, mining), encoding="utf-8")
    return path


def test_it_is_one_small_file_that_says_what_the_record_says(mining, page):
    text = page.read_text(encoding="utf-8")
    assert not re.findall(r"""(?:src|href)=["'](?!data:|#)[^"']*""", text) and "default-src 'none'" in text
    assert len(text) < 1_000_000
    cards = re.findall(r'<article class="mode".*?</article>', text, re.DOTALL)
    assert len(cards) == len(mining.findings) and mining.findings[0].verdict == "confirmed"
    for card, one in zip(cards, mining.findings, strict=True):
        assert one.verdict in card and all(fact.replace('"', "&#34;") in card for fact in one.facts)
        rates = [one.fails, *(contrast.fails for contrast in one.without)] if one.fails else []
        assert card.count('class="bar"') == len(rates)
        for rate in rates:
            assert percent(rate.value) in card and interval(rate.low, rate.high) in card
        assert all(f"{contrast.p:.2g}" in card for contrast in one.without)
        assert card.count("<figure") == min(EXAMPLES, len(one.examples))
    spent = [int(n) for n in re.findall(r'<td class="n">([\d]+)</td></tr>', text[text.index('id="probes"') :])]
    assert sum(spent) == mining.probes
    assert catalogue("support", AUDIT, 0.0, mining) == text


def test_it_is_open_to_everybody_and_filters_by_verdict(browser, mining, page):
    context = browser.new_context(viewport={"width": 400, "height": 900}, color_scheme="dark", offline=True)
    opened = context.new_page()
    errors: list[str] = []
    opened.on("pageerror", lambda error: errors.append(str(error)))
    opened.goto(page.as_uri())
    check(opened)
    assert opened.evaluate("document.documentElement.scrollWidth") <= 400
    cards = opened.locator("article:visible")
    assert cards.count() == len(mining.findings)
    for verdict in {one.verdict for one in mining.findings}:
        opened.get_by_label("verdict").select_option(verdict)
        count = sum(one.verdict == verdict for one in mining.findings)
        assert cards.count() == count
        assert opened.get_by_role("status").inner_text() == f"{count} of {len(mining.findings)} candidates"
    assert errors == []
    context.close()


def test_hostile_texts_are_shown_as_texts(browser, mining, tmp_path):
    example = MinedExample(
        item=HOSTILE, text=HOSTILE, given=HOSTILE, original="", expected=HOSTILE, answered=HOSTILE, holds=[HOSTILE]
    )
    one = mining.findings[0].model_copy(update={"facts": [HOSTILE], "replaced": [HOSTILE], "examples": [example]})
    text = catalogue(HOSTILE, AUDIT, 0.0, mining.model_copy(update={"findings": [one]}))
    assert "<script>alert" not in text and len(re.findall("<script", text)) == len(re.findall("</script>", text))
    (tmp_path / "page.html").write_text(text, encoding="utf-8")
    opened = browser.new_page()
    opened.on("dialog", lambda dialog: pytest.fail(dialog.message))
    opened.goto((tmp_path / "page.html").as_uri())
    assert opened.locator("h1").inner_text() == HOSTILE
    opened.close()
