"""Other people's texts in Prefect's artifacts: shown as text, with no effect as markup or links."""

from pathlib import Path

from markdown_it import MarkdownIt

from flows.people.artifacts import _row, verdict_markdown
from flows.people.suspend import describe
from flows.results import LastVerdict
from flows.views.labels import code, decided_markdown, prose
from stages.decisions import RecordedDecision, Standing
from stages.decisions.files import DecisionFile
from stages.records import Gate
from tests.workspace import Workspace, audit_params, repair_params

LINK = "[sign in](https://evil)"
TEXTS = ["<https://evil>", "\\<b>x</b>"]
TEXTS += [start + LINK for start in ("x\n\n", "x\n\n- `", "x\\|", "x` ", "**x\n# ")]


def shown(text: str) -> str:
    """Markdown rendered as a page."""
    return MarkdownIt("commonmark").enable("table").render(text)


def test_texts_of_people_are_read_and_never_followed(tmp_path, monkeypatch):
    Workspace(tmp_path).write_params({"audits": {"tiny": audit_params()}, "repairs": {"tiny": repair_params()}})
    monkeypatch.chdir(tmp_path)
    for text in TEXTS:
        said = {"reviewer": text, "reason": text, "via": "page", "approve": False}
        by = RecordedDecision.model_construct(**said)  # without validation
        gate = Gate(gate="slices.label.max", bound=0.1, value=0.2, low=None, high=None, passed=False, slice=text)
        now = Standing("0" * 16, (DecisionFile(Path("x.yaml"), "0" * 64, by),), 2, problems=(text,))
        for markdown in (
            code(text),
            prose(text),
            _row(code(text), prose(text)),
            decided_markdown([by]),
            describe("tiny", now, [], problem=text),
            verdict_markdown(LastVerdict("tiny", False, [gate], None, True, f"decided by {text}", text)),
        ):
            page = shown(markdown)
            assert "<a " not in page and "<b>" not in page and "<h1>" not in page, markdown
            assert "evil" in page or "<b>" in text


def test_a_row_has_as_many_cells_whatever_is_in_them():
    for text in ("a|b", "a\\|b", "a\\\\|b"):
        page = shown("\n".join(("| a | b |", "|---|---|", _row(code(text), prose(text)))))
        assert page.count("<td>") == 2 and page.count("|") == 2
