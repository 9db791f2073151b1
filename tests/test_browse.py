"""`faded report --browse`: every probe can be seen, whatever it says, by nobody without a link, without a query."""

import re
import shlex
from collections.abc import Iterator
from types import SimpleNamespace
from typing import Any
from urllib.parse import urlsplit

import numpy as np
import pytest
from fastapi.testclient import TestClient

import faded
from flows.people import browse
from flows.people.browse import ShownProbes, pages_of, serve_probes
from flows.people.review.app import make_app
from flows.people.review.links import Served
from flows.results.probes import PAGE, ProbeQuery, ProbeTable
from flows.server.security import PAGE_POLICY
from stages.conclude import broken
from stages.core.errors import UsageError
from stages.params import load_params
from stages.records import audit_folder
from stages.tasks.contract import Exhibit
from tests.finished import inside
from tests.planted_pictures import png
from tests.report_samples import HOSTILE
from tests.review_samples import HOST, URL
from tests.test_explorer import WIDTHS, looked_at
from tests.workspace import Workspace


@pytest.fixture(scope="module", autouse=True)
def _here(workspace: Workspace) -> Iterator[None]:
    """Work in a workspace with an audit and its repair, "tiny"."""
    with inside(workspace):
        yield


@pytest.fixture
def shown(monkeypatch: pytest.MonkeyPatch) -> ShownProbes:
    """Probes of an audit whose model answers nobody."""
    found = ShownProbes(load_params(), "tiny")
    assert found.without == "" and found._task is not None
    monkeypatch.setattr(type(found._task), "probe", unasked)
    return found


def unasked(*_: Any) -> Any:
    raise AssertionError("the model was queried")


def table() -> ProbeTable:
    return ProbeTable(audit_folder("tiny"))


def visitor(shown: ShownProbes) -> TestClient:
    """A browser that opened its link."""
    served = Served(["tiny"], URL, HOST, URL, "faded-probes", path=browse.probes_path)
    client = TestClient(make_app(served, pages_of(shown)), base_url=URL)
    assert client.get("/probes/tiny").status_code == 403
    assert client.get(served.link("tiny").removeprefix(URL)).status_code == 200
    return client


def listed(page: str) -> list[int]:
    return [int(number) for number in re.findall(r'<a href="/probes/tiny/\d+[^"]*">(\d+)</a>', page)]


def test_all_probes_of_all_searches_are_filtered_and_sorted() -> None:
    found, here = table(), audit_folder("tiny")
    assert len(found) == len(here.discover.probes) + len(here.summarize.fresh) + len(here.re_evaluate.probes)
    assert set(found.table["model"].cat.categories) >= {"tested", "before", "after"}
    assert sorted(found.select(ProbeQuery())) == list(range(len(found)))
    rows, concept, cells = found.table, found.space.names[0], found.cells(np.arange(len(found)))
    worst = rows["discrepancy"].to_numpy()[found.select(ProbeQuery())]
    assert (np.diff(worst) <= 0).all() and len(set(worst.tolist())) > 10
    assert found.select(ProbeQuery(order="asked")).tolist() == list(range(len(found)))
    assert rows["discrepancy"].to_numpy()[found.select(ProbeQuery(order="smallest"))].tolist() == worst[::-1].tolist()
    item, mode = rows["item"].iloc[3], next(iter(found.modes.values()))
    inside_mode = mode.cells.in_box(found.space, cells)
    expected = {
        ProbeQuery(outcome="failed"): rows["failed"],
        ProbeQuery(outcome="passed", by="control"): ~rows["failed"] & (rows["role"] == "control"),
        ProbeQuery(model="after"): rows["model"] == "after",
        ProbeQuery(item=item.upper()): rows["item"] == item,
        ProbeQuery(answer="ronG"): rows["output"] == "wrong",
        ProbeQuery(answer="w.*g"): rows["failed"] & False,
        ProbeQuery(levels=((concept, 1),)): cells[:, 0] == 1,
        ProbeQuery(mode=mode.id): inside_mode,
        ProbeQuery(mode="M99"): rows["failed"] & False,
    }
    for wanted, which in expected.items():
        assert sorted(found.select(wanted)) == np.flatnonzero(which).tolist(), wanted
    assert len(found.select(ProbeQuery(outcome="failed"))) > 10 < len(found.select(ProbeQuery(mode=mode.id)))


def test_what_newly_fails_after_the_repair_is_shown_as_it_is_listed() -> None:
    """Of a repair that breaks much: the audit's own with both models' answers swapped."""
    here = audit_folder("tiny")
    again = here.re_evaluate
    probes = again.probes.replace({"model": {"before": "after", "after": "before"}})
    records = {name: getattr(here, name) for name in ("prepare", "discover", "summarize")}
    swapped = SimpleNamespace(probes=probes, has=lambda name: name == "probes")
    found = ProbeTable(SimpleNamespace(**records, re_evaluate=swapped))
    listed = broken(probes, found.space)
    shown = found.table.iloc[found.select(ProbeQuery(outcome="broken", order="asked"))]
    assert len(listed) > 10 and shown["item"].tolist() == listed["item"].tolist()
    assert shown["output"].tolist() == listed["after"].tolist() and set(shown["model"]) == {"after"}
    assert len(ProbeTable(here).select(ProbeQuery(outcome="broken"))) == len(broken(again.probes, found.space))


def test_a_query_is_read_and_written_again_without_what_is_wrong() -> None:
    space = table().space
    name, other = space.names[:2]
    query = {"outcome": "failed", f"level.{name}": "1", f"level.{other}": "999", "level.nothing": "1", "page": "3"}
    wanted = ProbeQuery.read(query, space)
    assert wanted == ProbeQuery(outcome="failed", levels=((name, 1),))
    assert ProbeQuery.read(wanted.query, space) == wanted
    for bad in ("-1", "1.0", "²", "9" * 99, "<b>"):
        assert ProbeQuery.read({f"level.{name}": bad}, space) == ProbeQuery()


def test_probes_are_paged(shown: ShownProbes) -> None:
    client, chosen = visitor(shown), shown.table.select(ProbeQuery(outcome="failed")).tolist()
    last = -(-len(chosen) // PAGE)
    assert last > 1
    for page, at in (("1", 1), ("2", 2), ("", 1), ("0", 1), ("x", 1), (str(last), last), ("9" * 9, last)):
        answer = client.get("/probes/tiny", params={"outcome": "failed", "page": page})
        assert listed(answer.text) == chosen[PAGE * (at - 1) : PAGE * at]
    assert ">Previous</a>" in answer.text and ">Next</a>" not in answer.text
    assert listed(client.get("/probes/tiny?outcome=nonsense").text) == []


def test_one_probe_leads_to_its_neighbours_and_back(shown: ShownProbes) -> None:
    client, chosen = visitor(shown), shown.table.select(ProbeQuery(outcome="failed")).tolist()
    row = chosen[PAGE]
    page = client.get(f"/probes/tiny/{row}?outcome=failed").text
    around = [chosen[PAGE - 1], chosen[PAGE + 1]]
    assert re.findall(r'href="/probes/tiny/(\d+)\?outcome=failed">(?:Previous|Next)', page) == list(map(str, around))
    assert 'href="/probes/tiny?outcome=failed&amp;page=2">All probes' in page
    assert shown.table.space.describe(shown.table.cells(np.array([row]))[0]) in page  # the exhibit of a planted task
    assert {client.get(f"/probes/tiny/{n}").status_code for n in (len(shown.table), -1)} == {404}


def test_the_pages_only_read_and_are_guarded(shown: ShownProbes) -> None:
    client = visitor(shown)
    answer = client.get("/probes/tiny/0")
    policy = answer.headers["Content-Security-Policy"].replace("img-src 'self' data:", "img-src data:")
    assert policy == PAGE_POLICY and "<script" not in answer.text
    assert client.post("/probes/tiny").status_code == 405
    assert client.get("/review/tiny").status_code == client.get("/probes/other").status_code == 404
    assert client.get("/probes/tiny", headers={"Host": "127.0.0.1:8711"}).status_code == 421


def test_whatever_items_and_answers_hold_is_text(shown: ShownProbes, monkeypatch: pytest.MonkeyPatch) -> None:
    rows, cruel = shown.table.table, f"\"><{HOSTILE}&'{{{{7*7}}}}\x00"
    rows["output"], rows["item"] = cruel, rows["item"].cat.rename_categories(lambda item: f"{item} {cruel}")
    shown.table._expected = shown.table._expected.map(lambda _: cruel).set_axis(rows["item"].cat.categories)
    shown.table.modes = {name: mode.model_copy(update={"text": cruel}) for name, mode in shown.table.modes.items()}
    monkeypatch.setattr(shown, "_task", Hostile(cruel))
    client = visitor(shown)
    for at in ("/probes/tiny", f"/probes/tiny/{shown.table.select(ProbeQuery(mode='M1'))[0]}"):
        answer = client.get(at, params={"item": "script", "answer": "<script>", "order": cruel})
        assert answer.status_code == 200 and answer.text.count("&lt;script&gt;") > 5
        assert "<script" not in answer.text.lower() and "{{7*7}}" in answer.text


class Hostile:
    """A task that shows the same text everywhere."""

    def __init__(self, text: str) -> None:
        self.text = text

    def recalled(self, items: list[str], *_: Any) -> list[Exhibit]:
        answers, words = {self.text: self.text}, [(self.text, self.text)]
        return [Exhibit(self.text, text=self.text, original="", answers=answers, words=words)] * len(items)


def test_a_task_that_fails_hides_no_answers(shown: ShownProbes, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(shown._task, "recalled", lambda *_: 1 / 0)
    page = visitor(shown).get("/probes/tiny?outcome=failed").text
    assert len(listed(page)) == PAGE and "ZeroDivisionError" in visitor(shown).get("/probes/tiny").text
    monkeypatch.setattr(browse, "load_alone", unasked)
    assert "the model was queried" in ShownProbes(load_params(), "tiny").without


def test_pictures_that_were_kept_are_shown_with_their_probe(shown: ShownProbes) -> None:
    row = int(np.flatnonzero(shown.table.table["model"] == "after")[0])
    key = ("after", shown.table.table["item"].iloc[row], tuple(shown.table.cells(np.array([row]))[0].tolist()))
    shown._drawn[key] = png(7)
    before = int(np.flatnonzero(shown.table.table["model"] == "before")[0])
    assert [one.drawn for one in shown.exhibits(np.array([row, before]))] == [png(7), None]


def test_pictures_of_the_table_are_made_when_looked_at(shown: ShownProbes, monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[int] = []

    def recalled(items: list[str], *_: Any) -> list[Exhibit]:
        asked.append(len(items))
        return [Exhibit("", image=png(9))] * len(items)

    assert not shown.pictured
    monkeypatch.setattr(shown, "pictured", True)
    monkeypatch.setattr(shown._task, "recalled", recalled)
    client = visitor(shown)
    page = client.get("/probes/tiny?order=asked").text
    assert page.count('loading="lazy"') == PAGE and asked == [] and "data:image" not in page
    answer = client.get("/probes/tiny/7/picture")
    assert (answer.content, answer.headers["Content-Type"], asked) == (png(9), "image/png", [1])
    assert client.get(f"/probes/tiny/{len(shown.table)}/picture").status_code == 404
    assert client.get("/probes/tiny/7").text.count("data:image/png") == 2  # the unchanged one beside it


def test_the_command_makes_the_same_probe_again(capsys: pytest.CaptureFixture[str]) -> None:
    found = ShownProbes(load_params(), "tiny")
    for model in ("tested", "after"):
        for row in np.flatnonzero(found.table.table["model"] == model)[:3].tolist():
            [code] = re.findall(r"^python -c (.*)$", found.command(row))
            exec(*shlex.split(code))
            probe, said = found.table.table.iloc[row], capsys.readouterr().out
            assert f"outputs=['{probe['output']}']" in said and f"failed=array([{probe['failed']!s:>5}])" in said
    result = faded.load("tiny")
    for item, levels, model in (("none", {}, "before"), ("discover-0000", {"tilt": 99}, "before"), ("x", {}, "best")):
        with pytest.raises(UsageError):
            result.probe(item, levels, model=model)


@pytest.mark.slow
def test_probes_are_open_to_everybody_and_need_no_script(browser: Any, shown: ShownProbes) -> None:
    with serve_probes(shown, port=0) as link:
        context = browser.new_context(color_scheme="dark")
        page, errors = context.new_page(), []
        page.on("console", lambda said: errors.append(said.text) if said.type in ("error", "warning") else None)
        page.goto(link)
        assert "token" not in page.url and tuple(looked_at(page)) == WIDTHS
        page.get_by_label("outcome").select_option("failed")
        page.get_by_role("button", name="Show", exact=True).focus()
        page.keyboard.press("Enter")
        page.locator("tbody .pill.bad").nth(PAGE - 1).wait_for()
        assert page.locator("tbody .pill.good").count() == 0
        page.get_by_role("link", name="Next").click()
        page.get_by_role("link", name="Previous").wait_for()
        page.locator("tbody a").nth(4).click()
        page.get_by_role("heading", name="Probe it again").wait_for()
        assert tuple(looked_at(page)) == WIDTHS
        page.get_by_role("link", name="All probes").click()
        page.locator("tbody .pill.bad").first.wait_for()
        assert "page=2" in urlsplit(page.url).query and errors == []
        context.close()
