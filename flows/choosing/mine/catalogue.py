"""The page of mining results: every candidate with its rates and examples of failures."""

from __future__ import annotations

from base64 import b64encode
from collections.abc import Sequence
from datetime import UTC, datetime
from hashlib import sha256
from pathlib import Path
from typing import NamedTuple

from jinja2 import ChoiceLoader, FileSystemLoader
from markupsafe import Markup

from stages.mining import Finding, MinedExample, Mining
from stages.pages import page
from stages.pages.gallery import ExhibitView, Shrinker
from stages.pages.page import LAST_TITLES
from stages.pages.texts import HEAD, excerpt, mark_changes
from stages.params import AuditConfig
from stages.tasks.contract import Exhibit

TEMPLATES = Path(__file__).parent / "templates"
EXAMPLES = 3  # per candidate
LIMITS = (
    "Only items of the split discover were used. Rates are measured on confirming items, which had no part in "
    "proposing candidates. Other data may have other words and other rates.",
    "Words were replaced by a dictionary that does not know the context. If a text no longer reads well, its failure "
    "says little about the word: read the examples.",
    "Words and levels were changed in the same items, so the change caused the failures. An attribute cannot be "
    "changed without rewriting the text, so it is compared with other items: the model fails more often where it "
    "holds, possibly because of something else that such texts share.",
    "The chance that any of the tested candidates is confirmed by mistake is at most {level:.0%}. A candidate that was "
    "not confirmed may still be a weakness that too few items could show.",
    "No person judged these answers: failures are defined by the measure of the audit.",
)


class Candidate(NamedTuple):
    """A candidate on the page: its id, the finding, and examples of failures."""

    id: str
    finding: Finding
    examples: Sequence[ExhibitView]


def catalogue(name: str, audit: AuditConfig, when: float, mining: Mining) -> str:
    """Render the results, mined `when` seconds after 1970, as one self-contained page that needs no network."""
    settings = mining.settings
    shown = {n: one.examples[:EXAMPLES] for n, one in enumerate(mining.findings, 1)}
    shrinker = Shrinker(_exhibit(example) for examples in shown.values() for example in examples)
    candidates = [
        Candidate(f"C{n}", one, [_shown(example, shrinker) for example in shown[n]])
        for n, one in enumerate(mining.findings, 1)
    ]
    scripts = (page.TEMPLATES / "report.js", page.TEMPLATES / "explorer.js", TEMPLATES / "catalogue.js")
    script = "".join(path.read_text(encoding="utf-8") for path in scripts)
    told = {
        "task": audit.task,
        "model": audit.prepare.get("model"),
        "seed": audit.seed,
        "mined": f"{datetime.fromtimestamp(when, UTC):%Y-%m-%d %H:%M} UTC",
        **{about.description or name: getattr(settings, name) for name, about in type(settings).model_fields.items()},
    }
    titles = {key: title for key, title in LAST_TITLES.items() if key != "skipped"}
    loader = ChoiceLoader([FileSystemLoader(TEMPLATES), FileSystemLoader(page.TEMPLATES)])
    return (
        page.environment()
        .overlay(loader=loader)
        .get_template("catalogue.html.j2")
        .render(
            audit=name,
            mining=mining,
            candidates=candidates,
            verdicts=list(dict.fromkeys(one.verdict for one in mining.findings)),
            contents={"candidates": "Candidates", "probes": "Probes", **titles},
            limits=[line.format(level=settings.level) for line in LIMITS],
            skipped=[],
            provenance=told,
            metrics={},
            style=Markup((page.TEMPLATES / "report.css").read_text(encoding="utf-8")),
            script=Markup(script),
            script_hash=Markup(f"'sha256-{b64encode(sha256(script.encode()).digest()).decode('ascii')}'"),
        )
    )


def _exhibit(example: MinedExample) -> Exhibit:
    answers = {"expected": example.expected, "answered": example.answered}
    return Exhibit(f"item {example.item}", text=example.given, original=example.original, answers=answers)


def _shown(example: MinedExample, shrinker: Shrinker) -> ExhibitView:
    """Return an example for the page; of a long text, show the changed part, which may be far from its beginning."""
    shown = shrinker.show(_exhibit(example))
    if not (shown.text and shown.text.tail) or shown.beside:
        return shown
    return shown._replace(text=excerpt(mark_changes(example.original, example.given).pieces, HEAD))
