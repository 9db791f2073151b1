"""Pages that show every probe of an audit, with what the model was given and what it answered; they query no model."""

import contextlib
import json
import threading
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from shlex import quote as shell_quote
from typing import Any
from urllib.parse import quote, urlencode

import numpy as np
from fastapi import APIRouter, Request
from fastapi.responses import HTMLResponse, Response
from starlette.exceptions import HTTPException

from flows.people.review.app import Audit, SignedIn, enter, signed_in
from flows.people.review.server import serve_pages
from flows.people.review.view import review_templates
from flows.results.probes import (
    CHOSEN_BY,
    MODELS,
    ORDERS,
    OUTCOMES,
    PAGE,
    UNDER_TEST,
    ProbeQuery,
    ProbeTable,
    number_in,
)
from flows.server.security import PAGE_POLICY
from stages.core.errors import FadedError
from stages.pages.examples import Case, changed_levels
from stages.pages.gallery import Shrinker
from stages.pages.words import number
from stages.params import Params
from stages.records import AuditFolder, audit_folder
from stages.tasks.base import NOT_RECORDED, LoadedTask
from stages.tasks.contract import Exhibit, ProbeBatch
from stages.tasks.load import load_alone

_PYTHON = {UNDER_TEST: "", "before": "", "noise": ""}  # the model that `Result.probe` queries unless another is named
# Pictures of the table are loaded as it is scrolled, since changing and encoding one takes up to a tenth of a second.
_POLICY = {"Content-Security-Policy": PAGE_POLICY.replace("img-src data:", "img-src 'self' data:")}


def probes_path(audit: str) -> str:
    """The path of the page with an audit's probes."""
    return f"/probes/{quote(audit, safe='')}"


class ShownProbes:
    """Probes as people see them: inputs are changed again by the audit's task, answers are those that were recorded.

    If the task cannot be loaded, for the reason `without`, only answers are shown. Raises a UsageError if there are no
    probes, or no landscape yet.
    """

    def __init__(self, params: Params, audit: str) -> None:
        here = audit_folder(audit)
        self.audit, self.table, self.without = audit, ProbeTable(here), ""
        self._task: LoadedTask | None = None
        try:
            self._task = load_alone(audit, params.audit(audit), here.prepare.path)
        except Exception as error:  # a user's task may fail in any way
            self.without = str(error) if isinstance(error, FadedError) else f"{type(error).__name__}: {error}"
        self._drawn = _drawings(here)
        self._lock = threading.Lock()  # a task may not be used by several threads
        self.pictured = any(one.image is not None for one in self.exhibits(np.arange(len(self.table))[:1]))

    def exhibits(self, rows: np.ndarray) -> list[Exhibit]:
        """Return what people see of some probes, with their answers."""
        answers, some = self.table.answers(rows), self.table.table.iloc[rows]
        items, cells = some["item"].tolist(), self.table.cells(rows)
        shown = self._recalled(items, cells, answers) or [Exhibit(output) for output in answers.outputs]
        drawn = (self._drawn.get(key) for key in zip(some["model"], items, map(tuple, cells.tolist()), strict=True))
        return [replace(one, drawn=one.drawn or picture) for one, picture in zip(shown, drawn, strict=True)]

    def unchanged(self, item: str) -> Exhibit | None:
        """Return an item as it is without a change; None if the grid has no such cell."""
        if (neutral := self.table.space.neutral) is None:
            return None
        answer = ProbeBatch(np.zeros(1, np.float32), np.zeros(1, bool), [NOT_RECORDED], np.ones(1, bool))
        return next(iter(self._recalled([item], neutral[None], answer)), None)

    def _recalled(self, items: list[str], cells: np.ndarray, answers: ProbeBatch) -> list[Exhibit]:
        if self._task is None or not items:
            return []
        try:
            with self._lock:
                return self._task.recalled(items, cells, answers)
        except Exception as error:  # as above
            self.without = f"{type(error).__name__}: {error}"
            return []

    def command(self, row: int) -> str:
        """The command that makes a probe again."""
        probe, space = self.table.table.iloc[row], self.table.space
        cell = zip(space.concepts, self.table.cells(np.array([row]))[0], space.start, strict=True)
        levels = ", ".join(f"{_literal(of.name)}: {_literal(of.levels[at])}" for of, at, start in cell if at != start)
        model = _PYTHON.get(probe["model"], f", model={_literal(probe['model'])}")
        asked = f"faded.load({_literal(self.audit)}).probe({_literal(probe['item'])}, {{{levels}}}{model})"
        return f"python -c {shell_quote(f'import faded; print({asked})')}"


def _literal(value: object) -> str:
    """Return a value as Python code, texts in the quotes that a shell leaves alone."""
    return json.dumps(value, ensure_ascii=False) if isinstance(value, str) else repr(value)


def _drawings(here: AuditFolder) -> dict[tuple[str, str, tuple[int, ...]], bytes]:
    """Return the pictures that models drew, where stages kept them: by model, item and cell."""
    found = {}
    known = {one.id: one for mode in here.summarize.landscape.modes for one in mode.examples}
    for shelf in here.summarize.exhibits.values() if here.summarize.has("exhibits") else ():
        for shown in shelf:
            if shown.exhibit.drawn is not None and (example := known.get(shown.id)) is not None:
                found[UNDER_TEST, example.item, tuple(example.cell)] = shown.exhibit.drawn
    for pairs in here.re_evaluate.examples.values() if here.re_evaluate.has("examples") else ():
        for pair in pairs:
            for model, drawn in (("before", pair.exhibit.drawn), ("after", pair.drawn)):
                if drawn is not None:
                    found[model, pair.item, tuple(pair.cell)] = drawn
    return found


@dataclass(frozen=True)
class ProbeRow:
    """A probe on a page: number, address, that of its picture if it has one, where it comes from, what people see."""

    number: int
    link: str
    picture: str
    item: str
    expected: str
    answer: str
    discrepancy: str
    model: str
    by: str
    case: Case


def rows_of(shown: ShownProbes, numbers: np.ndarray, wanted: ProbeQuery, *, whole: bool = False) -> list[ProbeRow]:
    """Return probes ready for a page; `whole` shows all of a text, and the unchanged picture beside the changed one."""
    table, apart = shown.table, shown.pictured and not whole
    exhibits = [Exhibit("")] * len(numbers) if apart else shown.exhibits(numbers)
    before = [shown.unchanged(item) if whole else None for item in table.table["item"].iloc[numbers]]
    shrinker = Shrinker([*exhibits, *(one for one in before if one is not None)])
    found = []
    for row, exhibit, unchanged in zip(numbers.tolist(), exhibits, before, strict=True):
        probe, outcome = table.table.iloc[row], table.outcome(row)
        at, expected = f"{probes_path(shown.audit)}/{row}", table.expected(probe["item"])
        if not expected and len(exhibit.answers) > 1:
            expected = f"as for the original: {next(iter(exhibit.answers.values()))}"
        view = shrinker.show(exhibit, unchanged=unchanged) if whole else shrinker.brief(exhibit, None)
        levels = changed_levels(table.space, table.cells(np.array([row]))[0].tolist())
        found.append(
            ProbeRow(
                number=row,
                link=f"{at}?{urlencode(wanted.query)}",
                picture=f"{at}/picture" if apart else "",
                item=probe["item"],
                expected=expected,
                answer=probe["output"],
                discrepancy=number(float(probe["discrepancy"])),
                model=MODELS.get(probe["model"], probe["model"]),
                by=CHOSEN_BY.get(probe["role"], probe["role"]),
                case=Case(f"probe-{row}", OUTCOMES[outcome], outcome != "failed", view, levels, [], {}),
            )
        )
    return found


def pages_of(shown: ShownProbes) -> APIRouter:
    """The two pages: a table of probes, and one probe. They are read from the query of their address alone."""
    router, table = APIRouter(), shown.table

    @router.get("/probes/{audit}")
    def look(request: Request, audit: Audit, token: str | None = None) -> Response:
        """Show a page of probes, or redeem a token for it."""
        if token is not None:
            return enter(request, audit, token)
        signed_in(request)
        wanted = ProbeQuery.read(request.query_params, table.space)
        chosen = table.select(wanted)
        last = max(1, -(-len(chosen) // PAGE))
        page = min(max(1, number_in(request.query_params.get("page", "")) or 1), last)
        here = chosen[PAGE * (page - 1) : PAGE * page]
        steps = {"First": 1, "Previous": page - 1, "Next": page + 1, "Last": last}
        return _page(
            shown,
            "Probes",
            wanted=wanted,
            rows=rows_of(shown, here, wanted),
            matching=len(chosen),
            failed=int(table.table["failed"].to_numpy()[chosen].sum()),
            first=PAGE * (page - 1) + 1,
            links=[(name, _to(audit, wanted, at)) for name, at in steps.items() if 1 <= at <= last and at != page],
            menus=_menus(table, wanted),
        )

    @router.get("/probes/{audit}/{row}")
    def look_at(request: Request, audit: Audit, row: int, _session: SignedIn) -> Response:
        """Show one probe."""
        if not 0 <= row < len(table):
            raise HTTPException(404)
        wanted = ProbeQuery.read(request.query_params, table.space)
        chosen = table.select(wanted)
        at = np.flatnonzero(chosen == row).tolist()
        beside = {"Previous": chosen[at[0] - 1 : at[0]], "Next": chosen[at[0] + 1 : at[0] + 2]} if at else {}
        links = [("All probes", _to(audit, wanted, at[0] // PAGE + 1 if at else 1))]
        there = [(name, int(other[0])) for name, other in beside.items() if len(other)]
        links += [(name, f"{probes_path(audit)}/{other}?{urlencode(wanted.query)}") for name, other in there]
        [one] = rows_of(shown, np.array([row]), wanted, whole=True)
        others = table.alike(row)
        cell = table.cells(np.array([row]))[0]
        levels = [(of.name, of.label(level)) for of, level in zip(table.space.concepts, cell.tolist(), strict=True)]
        modes = [(name, table.modes[name].text) for name in table.modes_of(row)]
        answers = rows_of(shown, others[:PAGE], wanted) if len(others) > 1 else []
        more = {"links": links, "levels": levels, "modes": modes, "answers": answers, "again": shown.command(row)}
        return _page(shown, "Probe", one, **more)

    @router.get("/probes/{audit}/{row}/picture")
    def picture(audit: Audit, row: int, _session: SignedIn) -> Response:
        """Send the changed input of one probe, if it is a picture."""
        image = shown.exhibits(np.array([row]))[0].image if 0 <= row < len(table) else None
        if image is None:
            raise HTTPException(404)
        return Response(image, media_type="image/png")

    return router


def _to(audit: str, wanted: ProbeQuery, page: int) -> str:
    return f"{probes_path(audit)}?{urlencode(wanted.query | {'page': str(page)})}"


def _menus(table: ProbeTable, wanted: ProbeQuery) -> list[tuple[str, str, str, list[tuple[str, str]]]]:
    """The menus of the filter: name, label, chosen value, and choices as (value, text)."""
    there = {name: set(table.table[name].cat.categories) for name in ("role", "model")}
    modes = {name: f"{name} {mode.text}" for name, mode in table.modes.items()}
    outcomes = {name: text for name, text in OUTCOMES.items() if name != "broken" or "after" in there["model"]}
    offered: list[tuple[str, str, str, Mapping[str, str]]] = [
        ("outcome", "outcome", wanted.outcome, outcomes),
        ("model", "model", wanted.model, {name: text for name, text in MODELS.items() if name in there["model"]}),
        ("by", "chosen by", wanted.by, {name: text for name, text in CHOSEN_BY.items() if name in there["role"]}),
        ("mode", "failure mode", wanted.mode, modes),
    ]
    at = dict(wanted.levels)
    for concept in table.space.concepts:
        levels = {str(level): concept.label(level) for level in range(len(concept))}
        offered.append((f"level.{concept.name}", concept.name, str(at.get(concept.name, "")), levels))
    menus = [(*one[:3], [("", "all"), *one[3].items()]) for one in offered if len(one[3]) > 1 or one[2]]
    return [*menus, ("order", "order", wanted.order, list(ORDERS.items()))]


def _page(shown: ShownProbes, title: str, one: ProbeRow | None = None, **context: Any) -> Response:
    html = review_templates().get_template("probes.html.j2").render(
        audit=shown.audit, path=probes_path(shown.audit), title=title, one=one, without=shown.without,
        total=len(shown.table), threshold=shown.table.threshold, **context,
    )  # fmt: skip
    return HTMLResponse(html, headers=_POLICY)


@contextlib.contextmanager
def serve_probes(shown: ShownProbes, port: int | None = None) -> Iterator[str]:
    """Serve the pages on loopback while the block runs, and yield a link that opens them once, in one browser."""
    more: dict[str, Any] = {"path": probes_path, "command": "faded report AUDIT --browse"}
    with serve_pages([shown.audit], port=port, pages=pages_of(shown), **more) as served:
        yield served.link(shown.audit)
