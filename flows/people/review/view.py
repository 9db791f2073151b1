"""The content of an audit's review page: landscape, examples, decisions so far, and what a decision causes."""

import re
from collections.abc import Iterable, Sequence
from functools import cache, lru_cache
from pathlib import Path
from typing import TYPE_CHECKING

from jinja2 import ChoiceLoader, Environment, FileSystemLoader

from flows.graph import FIRST_STAGES, Graph, Stage
from flows.people.approval import git_user
from flows.people.draft import SCORES, Fields, fields_of
from flows.people.review.links import page_path, reports_of
from flows.processes import aside
from flows.request import GATED, deadline, moment
from flows.results.abilities import abilities_of
from flows.results.estimate import estimate_cost
from stages.core.errors import UsageError
from stages.decisions import RULE, SEVERITIES, Action, RecordedDecision, Via, listed_keys, standing
from stages.decisions.identity import NOT_VERIFIED
from stages.decisions.names import same_person
from stages.pages import page
from stages.pages.words import by_usage
from stages.params import Params, load_params
from stages.records import audit_folder

if TYPE_CHECKING:
    from flows.results.glance import Glance
    from stages.pages.examples import ExampleSet

TEMPLATES = Path(__file__).parent / "templates"
FromTables = tuple["ExampleSet | None", str, list[str]]

ACTION_MEANS: dict[Action, str] = {
    "repair": "fine-tune a copy of the model to fix it",
    "accept": "a failure you can live with; it is monitored, not repaired",
    "ignore": "it does not matter to you; it is monitored, not repaired",
}
WAYS: dict[Via, str] = {
    "page": "on the review page",
    "terminal": "in the terminal",
    "command": "by command",
    "prefect": "in Prefect",
    "file": "from a file",
    "time-out": "by time-out",
}


@cache
def review_templates() -> Environment:
    """Templates of the report and the review page, with escaping on; undefined names are errors."""
    loader = ChoiceLoader([FileSystemLoader(TEMPLATES), FileSystemLoader(page.TEMPLATES)])
    env: Environment = page.environment().overlay(loader=loader)
    env.filters["moment"] = moment
    return env


def draft_key(audit: str, landscape: str, bound: str) -> str:
    """The key of a draft in a browser, which reviewers with their own links may share."""
    return " ".join(filter(None, (audit, landscape, bound)))


def own_link(audit: str, keys: Iterable[str]) -> str:
    """The message for somebody whose link does not identify them."""
    return (
        f"Decisions on {audit} are signed, so each reviewer ({', '.join(keys)}) needs a link of their own:"
        f" faded review {audit} --link --reviewer NAME"
    )


def first_page(audits: Sequence[str]) -> str:
    """The page of all these audits: how each stands, and what waits."""
    from flows.results.glance import read_status
    from flows.views.history import board_html

    params = load_params()

    def links(row: "Glance") -> list[tuple[str, str]]:
        at, audit = page_path(row.verdict.audit), row.verdict.audit
        here = [("decide" if row.waits else "review", at)] if audit in params.repairs else []
        return here + [(title, f"{at}/{name}") for name, title in reports_of(audit)]

    return board_html(params, read_status(params, None, audits), links, Path.cwd().name)


def review_view(
    params: Params,
    audit: str,
    fields: Fields | None = None,
    *,
    problems: Sequence[str] = (),
    revise: bool = False,
    known: str = "",
    bound: str = "",
) -> dict[str, object]:
    """Everything that an audit's page shows.

    Raises a UsageError if there is no landscape, or no repair to decide on.

    Args:
        fields: entries so far; by default those of the reviewer's own decision if it is revised, else none.
        known: the name under which this browser decided before; empty if it did not.
        bound: the reviewer whose own link opened the page, if it was one.
    """
    repair = params.repair(audit)
    now = standing(params, audit)
    found = audit_folder(audit).summarize.landscape
    records = [part.where(name) for part in audit_folder(audit).stages.values() for name in part.files()]
    written = tuple(path.stat().st_mtime_ns for path in records if path.exists())
    explorer, without, shown = _read_aside(audit, Path.cwd(), repair.model_dump_json(), written)
    known = bound or known
    reviewer = known or git_user()
    keys = listed_keys(params, audit)
    own = [d for d in now.decisions if same_person(d.reviewer, reviewer) and d.via != "time-out"]
    # While others still have to judge independently, git's name does not prove who looks: the server may be shared.
    earlier = own[-1] if own and revise and (known or now.complete) else None
    can = abilities_of(params, audit) if explorer else None
    return {
        "audit": audit,
        "landscape": now.landscape,
        "draft": draft_key(audit, now.landscape, bound),
        "overall": found.overall,
        "usage": by_usage(found.usage) if found.usage else "",
        "modes": found.modes,
        "explorer": explorer,
        "without": without,
        "learns": can is not None and repair.restructure.method in can.learns_from_examples,
        "biased": can is not None and can.tallies,
        "values": fields if fields is not None else fields_of(earlier) if earlier else {"reviewer": reviewer},
        "bound": bound,
        "needs_link": own_link(audit, keys) if keys and not bound else "",
        "not_verified": NOT_VERIFIED,
        "kept": fields is not None,
        "preselected": fields is not None or earlier is not None,
        "problems": list(problems),
        "revise": revise,
        "asked": revise or not now.complete,
        "standing": now,
        "replaces": _replaces(now.decisions),
        "seen": " ".join(kept.sha256 for kept in now.kept),
        "by_rule": repair.feedback.policy != "wait",
        "rule": RULE if now.needed > 1 else "",
        "deadline": deadline(audit),
        "takes": how_long(params, audit),
        "shown": shown,
        "reports": reports_of(audit),
        "actions": ACTION_MEANS,
        "severities": list(SEVERITIES),
        "scores": SCORES,
        "ways": WAYS,
    }


@lru_cache(maxsize=4)
def _read_aside(audit: str, _root: Path, _repair: str, _written: tuple[int, ...]) -> FromTables:
    """Read the tables in another process, as long as records and the repair's parameters stay the same.

    Pandas and scipy would stay in this one, which may serve for weeks.
    """
    found: FromTables = aside(f"{__name__}:read_tables", audit)
    return found


def read_tables(audit: str) -> FromTables:
    """Examples by mode, or why there are none, as a landscape can be decided on without; and what a repair can show."""
    import pandas as pd

    from flows.results.power import what_can_be_shown
    from stages.landscape.extremes import UNCHANGED
    from stages.pages.examples import ExampleSource, explore_modes
    from stages.pages.gallery import Shrinker

    told = [line.removeprefix(f"{audit}: ") for line in what_can_be_shown(load_params(), audit)]
    try:
        here = audit_folder(audit)
        galleries = here.summarize.exhibits
        known = here.summarize.extremes.get(UNCHANGED, []) if here.summarize.has("extremes") else []
        attributes = here.discover.embedded.told_apart if here.discover.has("embedded") else pd.DataFrame()
        shown = [one.exhibit for gallery in (*galleries.values(), known) for one in gallery]
        landscape = here.summarize.landscape
        source = ExampleSource(landscape.space, Shrinker(shown), {one.id: one.exhibit for one in known}, attributes)
        return explore_modes(landscape.modes, galleries, source), "", told
    except UsageError as error:
        return None, str(error), told


def _replaces(decisions: Sequence[RecordedDecision]) -> str:
    """Describe what a revision replaces, before it is known who makes it; consistent with `record_decision`."""
    if any(decision.via == "time-out" for decision in decisions):
        return "the rejection by time-out, and my earlier one if I made one"
    many = "my earlier one, or all earlier ones if I made none"
    return f"{decisions[0].reviewer}’s" if len(decisions) == 1 else many


def how_long(params: Params, audit: str) -> str:
    """The expected duration of the stages after the decision: "about 2 min 31 s (from the last run here)"."""
    # No query of DVC is needed: after a new decision these stages are stale in any case.
    before = [Stage(f"{kind}@{audit}", kind, audit, 0, (), None, ()) for kind in FIRST_STAGES]
    behind = [
        Stage(f"{kind}@{audit}", kind, audit, 0, (f"{GATED}@{audit}",), None, ("a decision",))
        for kind in ("restructure", "re_evaluate", "compare", "conclude")
    ]
    return estimate_cost(params, Graph({stage.name: stage for stage in (*before, *behind)}), [audit]).time


_POLICY = re.compile(r'<meta http-equiv="Content-Security-Policy" content="([^"]*)">')


def report_policy(head: str) -> str:
    """The content security policy sent with a report: the report's own, no frames, and an opaque origin.

    A report runs its own scripts; without an origin, they cannot act in the reviewer's name.
    """
    own = _POLICY.search(head)
    policy = own[1].replace("&#39;", "'") if own else "default-src 'none'; style-src 'unsafe-inline'; img-src data:"
    return f"{policy}; frame-ancestors 'none'; sandbox allow-scripts allow-downloads allow-modals"
