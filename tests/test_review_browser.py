"""The review page in a real browser: by keyboard, on a phone, from a file, and what it keeps of a draft."""

import contextlib
from collections.abc import Iterator
from typing import Any

import pytest

from flows.people.review.links import Served, write_way_in
from flows.people.review.server import serve_review
from stages.decisions import read_chain
from tests.review_samples import also_review, change_landscape, kept, make_review


class Window:
    def __init__(self, browser: Any, server: Served, **context: Any) -> None:
        self.server = server
        shape = {"viewport": {"width": context.pop("width", 1200), "height": 900}, "reduced_motion": "reduce"}
        self.context = browser.new_context(**shape, **context)
        self.page = self.context.new_page()
        self.errors: list[str] = []
        page = self.page
        page.on("console", lambda m: self.errors.append(m.text) if m.type in ("error", "warning") else None)
        page.on("pageerror", lambda error: self.errors.append(str(error)))
        page.on("dialog", lambda dialog: (self.errors.append(f"dialog: {dialog.message}"), dialog.dismiss()))
        link = server.link("x")
        ours = (link.partition("/review/")[0], "data:", "file:")
        self.context.on("request", lambda r: None if r.url.startswith(ours) else self.errors.append(r.url))
        page.goto(link)

    def press(self, button: str) -> None:
        self.page.get_by_role("button", name=button, exact=True).click()

    def choose(self, mode: str, action: str) -> None:
        self.page.locator(f'[data-mode="{mode}"] .segments label', has_text=action).click()

    def repair_the_rest(self) -> None:
        """Choose repair for modes without a choice, with a reason if one is needed."""
        for n, mode in enumerate(("M1", "M2", "M3")):
            chosen = self.page.locator(f'[data-mode="{mode}"]').locator('input[name^="action."]:checked')
            if not chosen.count():
                self.choose(mode, "Repair")
            why = self.page.get_by_label("Why?").nth(n)
            if chosen.count() and chosen.input_value() != "ignore" and not why.input_value():
                why.fill("seen")

    def save(self, button: str = "Approve the repair") -> None:
        if button.startswith("Approve"):
            self.repair_the_rest()
        self.press(button)
        self.page.get_by_role("heading", name="Recorded").wait_for()


@contextlib.contextmanager
def window(browser: Any, **context: Any) -> Iterator[Window]:
    with serve_review(["x"], port=0) as server:
        opened = Window(browser, server, **context)
        yield opened
        opened.context.close()


@pytest.mark.slow
def test_a_file_leads_to_the_page_and_leaves_what_is_open_alone(browser, place):
    """A browser then comes from another site, and does not send a strict cookie."""
    also_review()
    with window(browser) as w:
        for audit in ("x", "other"):
            page = w.context.new_page()
            page.goto(write_way_in(audit, w.server.link(audit)).as_uri())
            page.get_by_role("heading", name=audit, exact=True).wait_for()
            assert "token" not in page.url
        w.save()
        page.get_by_role("button", name="Reject").click()
        page.get_by_role("heading", name="Recorded").wait_for()
    assert [d.approve for d in kept()] == [True] and [k.decision.approve for k in read_chain("other")] == [False]


def test_it_works_by_keyboard_alone(browser, place):
    with window(browser) as w:
        keys = w.page.keyboard
        for key in "jrjjjaki":  # repair M1, to M3 (there is no fourth), accept it, back to M2, ignore it
            keys.press(key)
        assert w.page.evaluate("document.activeElement.dataset.mode") == "M2"
        assert w.page.locator("#tally").inner_text() == "As it stands: repair M1; accept M3; ignore M2."
        for n in (1, 3):
            w.page.locator(f"#reason-{n}").fill("seen")
        w.page.locator("#reason-2").focus()
        keys.type("jar")  # in a text these are letters
        w.page.get_by_label("Your name").focus()
        keys.press("Enter")  # approves nothing
        keys.press("End")
        keys.press("?")
        assert w.page.get_by_label("Your name").input_value() == "Ada Lovelace?"
        keys.press("Backspace")
        keys.press("Tab")
        keys.type("by keys")
        keys.press("Tab")
        assert w.page.evaluate("document.activeElement.textContent") == "Approve the repair" and kept() == []
        keys.press("Enter")
        w.page.get_by_role("heading", name="Recorded").wait_for()
        assert w.errors == []
    [made] = kept()
    assert [m.action for m in made.modes] == ["repair", "ignore", "accept"]
    assert (made.modes[1].reason, made.reason, made.reviewer) == ("jar", "by keys", "Ada Lovelace")


@pytest.mark.parametrize("kind", ["texts", pytest.param("pictures", marks=pytest.mark.slow)])
def test_a_phone_needs_no_sideways_scrolling_and_hostile_text_does_nothing(browser, tmp_path, monkeypatch, kind):
    make_review(tmp_path, monkeypatch, kind, hostile=True)
    with window(browser, width=380, has_touch=True) as w:
        for details in w.page.locator("details").all():
            assert w.page.evaluate("document.documentElement.scrollWidth") == 380
            details.evaluate("(d) => (d.open = true)")
        assert w.page.evaluate("document.documentElement.scrollWidth") == 380
        assert "<script>alert(1)</script>" in w.page.locator("#mode-1-title").inner_text()
        w.page.get_by_label("Your name").fill("<script>alert(2)</script>")
        w.save()
        assert "<script>alert(2)</script> approved" in w.page.inner_text("main") and w.errors == []


def test_a_draft_outlives_a_crash_until_it_is_recorded_thrown_away_or_about_another_landscape(browser, place):
    with window(browser) as w:
        why = w.page.get_by_label("Why?").nth(0)
        why.fill("thrown away")
        w.page.reload()
        with w.page.expect_navigation():
            w.page.get_by_role("button", name="Start over").click()
        assert w.page.locator("#draft").is_hidden() and why.input_value() == ""
        why.fill("about the other one")
        change_landscape()
        w.page.reload()
        assert why.input_value() == "" and w.page.evaluate("localStorage.length") == 1
        w.choose("M1", "Accept")
        why.fill("half a thought")
        w.page.get_by_label("M1.1: quality").select_option("4")
        w.page.reload()
        assert w.page.locator("#draft").inner_text().startswith("Your draft of")
        assert why.input_value() == "half a thought" and w.page.get_by_label("M1.1: quality").input_value() == "4"
        w.save("Reject")
        assert w.page.evaluate("localStorage.length") == 1  # that of the other landscape
        assert w.errors == []
    [made] = kept()
    assert (made.approve, made.modes[0].action, made.examples[0].rating) == (False, "accept", 4)
