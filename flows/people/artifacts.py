"""Prefect artifacts of an audit, each with a stable key: its verdict, its failure modes, and the decision asked for.

A run publishes only its own results: one that waits, or broke before its verdict, shows none of an earlier run.
"""

import contextlib
import logging
import re
import socket
from base64 import b64encode
from collections.abc import Callable, Mapping, Sequence
from io import BytesIO
from itertools import accumulate
from pathlib import Path

from flows.evidence.write import keep_evidence
from flows.people.review.links import reports_of, review_url
from flows.request import GATED, waits_for_person
from flows.results import LastVerdict, gate_word, read_verdict
from flows.run_stage import StageResult, finished
from flows.views.history import read_history
from flows.views.labels import DECIDED, Artifact, Conclusion, Ending, code, decided_markdown, how_it_ended, prose
from stages.core.errors import UsageError
from stages.decisions import standing
from stages.pages.words import by_usage, gate_view, interval, percent
from stages.params import Params, load_params
from stages.records import audit_folder
from stages.records.tables import ShownExample

_SHOWN = 4  # examples of a mode
_HEIGHT, _GAP = 84, 8  # in pixels: height of a picture, and gap between two
_LETTERS = 90  # of a caption


def conclusion_of(params: Params, audit: str, results: Sequence[StageResult]) -> Conclusion:
    """Determine how an audit ended in a deployed run, describe it, and keep its evidence if it is finished."""
    ending = how_it_ended(params, audit, results)
    evidence, problem = keep_evidence(params, audit) if finished(audit, results) else (None, None)
    drift = None
    if ending.anew and ending.kind in ("done", "gate failed") and (past := read_history(params, audit, 1)).shown > 0:
        drift = f"{audit}: {past.drift}"
    return Conclusion(ending, artifacts_of(params, ending, results), evidence, problem, drift)


def artifacts_of(params: Params, ending: Ending, results: Sequence[StageResult]) -> list[Artifact]:
    """Describe this run's results for an audit."""
    audit = ending.audit
    decided = {r.stage for r in results if r.outcome in ("ran", "restored", "failed")}
    unfinished = {r.stage for r in results if r.outcome in ("failed", "not reached", "waiting")}
    made = []
    if f"summarize@{audit}" not in unfinished:
        made += modes_of(audit)
    if ending.kind == "waiting":
        made += artifact(audit, "decision", "Your decision is needed", lambda: f"{ending.text}\n\n{where(audit)}")
    elif f"{GATED}@{audit}" in decided and waits_for_person(params, audit):
        made += artifact(audit, "decision", DECIDED, lambda: decided_markdown(standing(params, audit).decisions))
    if ending.result and not unfinished:
        verdict = read_verdict(params, audit)
        made += artifact(audit, "verdict", verdict.word, lambda: verdict_markdown(verdict, anew=ending.anew))
    return made


def modes_of(audit: str) -> list[Artifact]:
    """The failure modes of the audit's current landscape."""
    return artifact(audit, "failure-modes", "Where it fails", lambda: modes_markdown(audit))


def artifact(audit: str, what: str, title: str, text: Callable[[], str]) -> list[Artifact]:
    """An artifact, see `Artifact`; none if its text cannot be written, which is logged and does not fail the audit."""
    try:
        return [Artifact(audit, what, title, text())]
    except Exception:
        logging.getLogger(__name__).warning("artifact %s of %s was not written", what, audit, exc_info=True)
        return []


def verdict_markdown(verdict: LastVerdict, *, anew: bool = True) -> str:
    """The verdict with its gates, as markdown; `anew` is whether this run reached it rather than an earlier one."""
    lines = [] if anew else ["Nothing changed since this verdict was reached.", ""]
    for text in (verdict.decided, verdict.statement):
        lines += [prose(text[:1].upper() + text[1:]), ""] if text else []
    if verdict.gates:
        lines += ["| gate | bound | value | 95% interval | passed |", "|---|---|---|---|---|"]
        shown = map(gate_view, verdict.gates)
        lines += [_row(prose(g.name), g.bound, g.value, g.interval, gate_word(g.passed)) for g in shown]
        lines += [""]
    return "\n".join([*lines, where(verdict.audit)])


def modes_markdown(audit: str) -> str:
    """The failure modes with examples, as markdown."""
    folder = audit_folder(audit).summarize
    found = folder.landscape
    examples: Mapping[str, Sequence[ShownExample]] = {}
    with contextlib.suppress(UsageError):  # shown without examples then; the review page says why
        examples = folder.exhibits
    overall = found.overall
    what = f"of what the model will meet fails, {by_usage(found.usage)}" if found.usage else "of the grid fails"
    lines = [prose(f"{percent(overall.value)} {what} ({interval(overall.low, overall.high)})."), ""]
    if not found.modes:
        return "\n".join([*lines, "No failure mode was found.", "", where(audit)])
    lines += [
        f"| mode | where | fails | 95% interval | share of {'use' if found.usage else 'grid'} |",
        "|---|---|---|---|---|",
    ]
    for mode in found.modes:
        spread = interval(mode.low, mode.high)
        lines.append(_row(mode.id, code(mode.text), percent(mode.rate), spread, percent(mode.share)))
    for mode in found.modes:
        failing = [one.exhibit for one in examples.get(mode.id, ()) if one.failed][:_SHOWN]
        captions = ", ".join(code(one.caption[:_LETTERS]) for one in failing if one.caption)
        lines += ["", f"**{mode.id}**, examples that fail: {captions}"] if failing else []
        if pictures := [picture for one in failing if (picture := one.image or one.drawn) is not None]:
            lines += ["", f"![examples of {mode.id}]({_strip(pictures)})"]
    return "\n".join([*lines, "", where(audit)])


def where(audit: str) -> str:
    """Where to read the results and decide: links that a browser opens, if there are any, and commands."""
    at_home = f"On {socket.gethostname()} in `{Path.cwd()}`: `faded report {audit}`"
    if audit not in load_params().repairs:  # nobody decides on it, so it has no review page
        return at_home
    at_home += f", `faded review {audit} --link`"
    if (url := review_url(audit)) is None:
        return at_home
    pages = [("Review page", url), *((title, f"{url}/{name}") for name, title in reports_of(audit))]
    return " · ".join(f"[{title}]({there})" for title, there in pages) + f"\n\n{at_home}"


def _strip(pictures: Sequence[bytes]) -> str:
    """Pictures side by side in one data URI, as Prefect puts each image on a line of its own."""
    from PIL import Image

    small = []
    for picture in pictures:
        with Image.open(BytesIO(picture)) as opened:
            image = opened.convert("RGB")
        size = max(1, image.width * _HEIGHT // image.height), _HEIGHT
        how = Image.Resampling.NEAREST if image.height < _HEIGHT else Image.Resampling.LANCZOS
        small.append(image.resize(size, how))
    lefts = list(accumulate((image.width + _GAP for image in small), initial=0))
    strip = Image.new("RGBA", (lefts[-1] - _GAP, _HEIGHT))
    for image, left in zip(small, lefts, strict=False):
        strip.paste(image, (left, 0))
    buffer = BytesIO()
    strip.save(buffer, "PNG", optimize=True)
    return f"data:image/png;base64,{b64encode(buffer.getvalue()).decode('ascii')}"


def _row(*cells: str) -> str:
    # No backslashes before a bar: some renderers take two of them for one escaped backslash, and the bar for the end.
    return "| " + " | ".join(re.sub(r"\\*\|", r"\\|", cell) for cell in cells) + " |"
