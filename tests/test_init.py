"""`faded init`: what it asks, checks and writes; a refusal leaves nothing, and a kill nothing half-written."""

import io
import json
import os
import shlex
import shutil
import signal
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml
from rich.console import Console
from rich.prompt import Confirm, Prompt
from rich.text import Text

import flows.init.run
from flows.init.answers import ask_questions
from flows.init.propose import FEWEST, Wanted, kinds, repair_block, search_budget
from flows.init.run import Options, init_audit
from flows.init.unfinished import unmeasured
from flows.workspace.new import AuditDraft, with_draft
from stages.check import check_audits
from stages.core.errors import InfrastructureError, UsageError
from stages.core.intervals import Rate, Resampler, wilson
from stages.params import load_params
from stages.screening.sweep import Sweep, Worst
from stages.tasks.classification.init.trial import Order
from stages.tasks.init import one_of
from tests.finished import faded, run_stages
from tests.news import articles
from tests.own_model import SIDE, WEIGHTS, init, options, questions, swept
from tests.tiny_models import tiny_causal
from tests.workspace import ROOT, STAGES, Workspace, audit_params

pytest_plugins = ("tests.own_repository",)


@pytest.mark.slow
def test_a_model_and_pictures_become_an_audit_that_runs_to_its_verdict(repository):
    """In a repository without a commit, which is not required."""
    here = Workspace(repository)
    shutil.rmtree(repository / ".git")
    here.run(["git", "init", "--quiet"])
    code, told = faded(here, "init", "--model", WEIGHTS, "--data", "shapes", "--repair", "--budget", "100", "--yes")
    assert code == 0, told
    assert "test_resnet of timm, 3 classes, 3 channels" in told
    assert "60 pictures in 3 classes, all of them 32x32, 3 channels" in told
    assert "guessed: architecture: test_resnet, name: shapes, size: 32; options say otherwise" in told
    assert "faded audit shapes" in told and "DVC" not in told
    text = (repository / "params.yaml").read_text()
    audit = load_params(repository / "params.yaml").audit("shapes")
    assert audit.prepare["model"] == {"timm": "test_resnet", "weights": WEIGHTS}
    assert audit.prepare["data"] == {"imagefolder": "shapes", "size": SIDE}
    assert "Each concept was probed alone, " in " ".join(text.replace("#", " ").split())
    assert "Not measured" not in text
    assert (repository / f"data/shapes/inputs/{WEIGHTS}").readlink() == Path(f"../../../{WEIGHTS}")
    code, planned = faded(here, "plan", "shapes")
    assert code == 0 and "prepare@shapes" not in planned, "it ran for the sweep, and is not run again"
    run_stages(here, "shapes", STAGES[1:])
    for report in ("report/report.html", "conclude/report.html"):
        assert (repository / "data/shapes" / report).exists()


@pytest.mark.slow
def test_killed_at_any_moment_it_resumes_and_params_are_whole_in_between(repository):
    here = Workspace(repository)
    command = ("init", "--model", WEIGHTS, "--data", "shapes", "--no-repair", "--yes")
    process = here.start(*command)
    time.sleep(6)
    os.killpg(process.pid, signal.SIGKILL)
    process.wait()
    if (repository / "params.yaml").exists():
        yaml.safe_load((repository / "params.yaml").read_text())
    code, told = faded(here, *command)
    finished = "already has an audit of that name" in told  # the kill came too late
    assert code == 0 or finished, told
    text = (repository / "params.yaml").read_text()
    assert text.count("  shapes:") == 1 and "Not measured" not in text
    load_params(repository / "params.yaml")


def test_what_the_sweep_saw_is_written_beside_the_levels(repository, measured):
    four = Worst("label", "upright", "80°", wilson(48, 50), wilson(3, 50), 1e-9)
    measured(swept([0.0, 20.0, 40.0, 80.0], [0.02, 0.05, 0.1, 0.35], four, clean=0.02))
    told = init()
    text = (repository / "params.yaml").read_text()
    assert "rotation: [0, 20, 40, 80]" in text
    assert "# turn about the centre, counter-clockwise, in degrees; 80°: 35% fail, label upright 96%" in text
    plain = " ".join(text.replace("#", " ").split())
    assert "2% of them fail unchanged" in plain and "none in 30% of inputs, one in 40%, two in 20%" in plain
    assert "20°:5%▁  40°:10%▁  80°:35%▃" in told and "label upright at 80°: 96% of 50, others 6%" in told
    assert "label upright at 80°" in (repository / ".faded/init/shapes.html").read_text()
    assert "20 discover items and 20 test items support no claim about others" in told
    audit = load_params(repository / "params.yaml").audit("shapes")
    assert audit.discover.budget == 20 * 4 < search_budget(0.05)  # all pairs of an item and a level
    assert audit.summarize.modes == 10 and audit.prepare["items"] == {"discover": 20, "repair": 20, "test": 20}
    assert not list((repository / ".faded/init").glob("*.json"))


def test_what_was_stopped_is_whole_and_goes_on_where_it_was(repository, measured, monkeypatch):
    measured(InfrastructureError("the disk is full"))
    with pytest.raises(InfrastructureError, match="disk"):
        init(given=options(budget=600, probes=370))
    assert "Not measured yet" in (repository / "params.yaml").read_text()
    assert "shapes: its levels are not measured yet" in faded(Workspace(repository), "status")[1]
    load_params(repository / "params.yaml").audit("shapes")
    measured(swept([0, 20]))
    shutil.copytree(repository / "shapes", repository / "others")
    assert "did not finish" not in init(given=options(answers={"data": "others"}))  # not an answer about other data
    (repository / "elsewhere").mkdir()
    os.chdir(repository / "elsewhere")
    asked = []
    sweep = flows.init.run.sweep_concepts
    monkeypatch.setattr(flows.init.run, "sweep_concepts", lambda *a: asked.append(a[2]) or sweep(*a))
    told = init(given=Options({}, yes=True))  # its answers are remembered, with paths that are still valid
    assert "did not finish" in told and asked == [370]
    assert load_params(repository / "params.yaml").audit("shapes").discover.budget == 600
    after = (repository / "params.yaml").read_text()
    assert after.count("  shapes:") == 2  # under audits: and repairs:
    assert "rotation: [0, 20]" in after
    assert unmeasured(repository) == []


def test_a_bare_workspace_is_one_for_an_audit_that_is_written_by_hand(repository):
    here = Workspace(repository)
    code, told = faded(here, "init", "--bare", "--model", WEIGHTS, "--budget", "5")
    assert code == 2 and "--bare creates a workspace without an audit: leave out --model, --budget" in told
    assert not (repository / "dvc.yaml").exists()
    by_hand = yaml.safe_dump({"audits": {"mine": audit_params()}})
    (repository / "params.yaml").write_text(by_hand)
    shutil.copy(ROOT / "tests" / "planted.py", repository)
    code, told = faded(here, "init", "--bare")
    assert code == 0, told
    assert (repository / "params.yaml").read_text() == by_hand
    code, told = faded(here, "plan", "mine")
    assert code == 0 and "prepare@mine" in told, told
    assert "it is already a workspace" in faded(here, "init", "--bare")[1]


def test_other_answers_replace_unfinished_ones_even_after_a_kill_between_two_writes(repository, measured, monkeypatch):
    """The state has the blocks before and after the change, so that either is found in params.yaml."""
    measured(InfrastructureError("the disk is full"))
    with pytest.raises(InfrastructureError):
        init()

    def killed(*_arguments: object) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr("flows.init.run.replace_file", killed)
        init(given=options(answers={"repair": False}))
    measured(swept([0, 20]))
    init(given=options(answers={"repair": False}))
    params = load_params(repository / "params.yaml")
    assert list(params.audits) == ["shapes"] and params.repairs == {}


def test_a_name_that_is_taken_is_refused_and_another_one_is_added(repository, measured):
    init()
    with pytest.raises(UsageError, match="already has an audit of that name"):
        init(given=options(answers={"name": "shapes"}))
    (repository / "below").mkdir()
    init(repository / "below")  # in the same workspace; its name is guessed from the data
    assert list(load_params(repository / "params.yaml").audits) == ["shapes", "shapes-2"]


@pytest.mark.parametrize("items", [FEWEST, 54, 200, 1000])
def test_what_changes_next_to_nothing_holds_the_proposed_gates_however_few_the_items(items):
    gates = repair_block(kinds()["chat"], {"test": items}, 300)["gates"]
    unchanged, broken = np.zeros(items), np.repeat([1.0, 0.0], [items // 100, items - items // 100])
    resampled = Resampler(np.arange(items), 2000, 7)

    def ends(values: np.ndarray, bounds: tuple[float, float]) -> Rate:
        return resampled.mean(values, np.ones(items), bounds)

    assert ends(unchanged, (-1, 1)).high <= gates["other_failure_rate"]["change_max"]
    assert ends(unchanged, (-1, 1)).low >= gates["clean_quality"]["change_min"]
    assert ends(broken, (0, 1)).high <= gates["newly_failing"]["max"]


def test_every_other_byte_of_params_stays():
    text = (ROOT / "params.yaml").read_text()
    audit = {"task": "x:Y", "concepts": {"word": ["", "on", "a, b"]}}
    draft = AuditDraft("a", audit, {"gates": {}}, {"concepts": "Levels."})
    after = with_draft(text, draft)
    lines = draft.text()
    assert after.replace(f"\n{lines['audits']}", "").replace(f"\n{lines['repairs']}", "") == text
    assert with_draft(after, draft) == after
    assert yaml.safe_load(after)["audits"]["a"]["concepts"]["word"] == ["", "on", "a, b"]


@pytest.mark.parametrize("text", ["", "audits: {}\nrepairs: {}  # none\nrunner: ray\n", "audits:\n  b: {x: 1}\n"])
def test_an_audit_finds_its_place_in_any_layout(text):
    whole = yaml.safe_load(with_draft(text, AuditDraft("a", {"x": 1e-7}, {"gpus": 0})))
    assert whole["audits"]["a"] == {"x": 1e-7} and whole["repairs"] == {"a": {"gpus": 0}}


@pytest.fixture
def checked(monkeypatch) -> None:
    """Replace the sweep by the checks of `faded plan`."""

    def measure(params: Any, name: str, *_more: object) -> tuple[Sweep, float]:
        check_audits(params, [name])
        raise InfrastructureError("checked")

    monkeypatch.setattr(flows.init.run, "sweep_concepts", measure)


def test_a_table_whose_columns_another_mark_separates_is_told_by_it():
    with pytest.raises(UsageError, match="found age;churn; a CSV has commas between its columns, not ';'"):
        one_of("target", ["age;churn"])("churn")


def test_an_audit_of_a_summarizer_is_accepted_and_an_option_names_its_column(repository, checked):
    tiny_causal(repository / "chat")
    rows = [{"article": "Short.", "boddy": text, "highlights": "A summary."} for text in articles(40)]
    (repository / "news.jsonl").write_text("\n".join(map(json.dumps, rows)))
    given = {"model": "chat", "data": "news.jsonl"}
    with pytest.raises(UsageError, match="--text body: the data have no such column, did you mean 'boddy'"):
        init(given=options(answers={**given, "text": "body"}))
    with pytest.raises(InfrastructureError, match="checked"):
        init(given=options(answers={**given, "text": "boddy"}))
    prepare = load_params(repository / "params.yaml").audit("news").prepare
    assert prepare["data"] == {"jsonl": "news.jsonl", "text": "boddy", "summary": "highlights"}
    assert prepare["items"] == {"discover": 13, "repair": 13, "test": 14}


def test_without_a_terminal_a_missing_answer_names_its_option():
    none, kinds = questions({}), ["summarization", "text-to-image"]
    for told, ask in (
        ("--model", lambda: none.text("model", "The model")),
        ("--name, or --yes to accept the guess: pets", lambda: none.text("name", "Name", "pets")),
        ("--repair or --no-repair", lambda: none.confirm("repair", "Repair", True)),
        ("did you mean 'summarization'", lambda: questions({"kind": "sumarization"}).choice("kind", "Kind", kinds)),
    ):
        with pytest.raises(UsageError, match=told):
            ask()
    assert questions({}, yes=True).text("name", "Name", "pets") == "pets"


def test_on_a_terminal_it_asks_again_until_the_answer_will_do_and_shows_names_as_they_are(monkeypatch):
    """A folder or a column may have a name that looks like markup."""
    typed, shown = iter(["", "nothing", "pets"]), []

    def seen(question: str) -> None:
        shown.append(Text.from_markup(question).plain)

    monkeypatch.setattr(Prompt, "ask", lambda question, **_: seen(question) or next(typed))
    monkeypatch.setattr(Confirm, "ask", lambda question, **_: bool(seen(question)))

    def check(answer: str) -> None:
        if answer == "nothing":
            raise UsageError("there is no such file")

    assert questions({}, asks=True).text("data", "Data ([/bold], [red]a)", check=check) == "pets"
    assert questions({}, asks=True).confirm("repair", "Repair [/bold]", True) is False
    assert shown == 3 * ["Data ([/bold], [red]a)"] + ["Repair [/bold]"]


def asked(repository: Path, **given: Any) -> Wanted:
    answers = {"model": WEIGHTS, "data": "shapes", **given}
    return ask_questions(questions(answers, yes=True), repository, [], None)


def test_the_key_of_a_model_behind_a_url_is_named_and_never_written(repository, monkeypatch):
    url = {"kind": "image-classification", "model": "https://models.example.com/classify"}
    monkeypatch.setenv("MY_KEY", "secret")
    assert asked(repository, **url, **{"key-env": "MY_KEY"}).model["key_env"] == "MY_KEY"
    assert "key_env" not in asked(repository, **url).model
    for given, said in (
        ({**url, "key-env": "NO_SUCH_KEY"}, "--key-env: the environment variable NO_SUCH_KEY is not set"),
        ({**url, "key-env": "sk-secret"}, "expected the name of an environment variable"),
        ({**url, "model": "http://models.example.com/", "key-env": "MY_KEY"}, "plain http"),
        ({"key-env": "MY_KEY"}, "behind a URL"),
        ({**url, "model": "https://ada:secret@models.example.com/"}, "--model: .*holds a user name or a password"),
    ):
        with pytest.raises(UsageError, match=said):
            asked(repository, **given)


def left(repository: Path) -> set[str]:
    """All files except git's own and the remembered answers."""
    held = {path.relative_to(repository).as_posix() for path in repository.rglob("*") if ".git/" not in str(path)}
    return {name for name in held if not name.startswith(".faded")}


def order(counts: list[list[int]]) -> Order:
    return Order([chr(ord("a") + i) for i in range(len(counts))], np.array(counts))


@pytest.mark.parametrize(
    ("counts", "proposed", "sure"),
    [
        ([[18, 1, 1], [2, 17, 1], [0, 3, 17]], "abc", False),  # in the order of the names
        ([[1, 18, 1], [1, 2, 17], [17, 0, 3]], "cab", True),
        ([[0, 2, 0], [0, 0, 2], [2, 0, 0]], "cab", False),  # likely, but from two pictures each
        ([[0, 20, 0], [0, 20, 0], [0, 0, 20]], "abc", False),  # one class is classified as another: that is a failure
        ([[0, 20, 0], [0, 0, 20], [0, 0, 0]], "cab", True),  # there are no pictures of c
    ],
)
def test_the_order_of_outputs_is_read_off_the_answers_and_said_to_be_sure_only_if_it_is(counts, proposed, sure):
    found = order(counts)
    assert ("".join(found.proposed), found.sure) == (proposed, sure)


def test_two_swapped_classes_are_seen_and_the_right_order_is_offered(repository, measured, monkeypatch):
    answers = {"classes": "flat,upright,slanted", "repair": False, "name": "a", "size": "32"}
    given = options(answers={**answers, "architecture": "test_resnet"}, yes=False)
    asked = []
    monkeypatch.setattr(Confirm, "ask", lambda question, **_: asked.append(question) or True)
    out = io.StringIO()
    init_audit(Path(), given, Console(file=out, width=200), asks=True)
    assert asked == ["Take the classes in that order", "Write this audit and measure each concept"]
    assert "upright" in out.getvalue() and "slanted (" in out.getvalue()
    model = load_params(repository / "params.yaml").audit("a").prepare["model"]
    assert model["classes"] == ["flat", "slanted", "upright"]


def test_a_missing_an_emptied_and_an_extra_class_are_named_with_what_to_type(repository):
    for picture in (repository / "shapes/slanted").iterdir():
        picture.unlink()
    given = options(answers={"repair": False})
    said = r"the model has 3 outputs, and the data 2 classes: flat \(20\), upright \(20\); without a picture: slanted"
    with pytest.raises(UsageError, match=rf"(?s){said}.*say --classes flat,slanted,upright"):
        init(given=given)
    (repository / "shapes/slanted").rmdir()
    with pytest.raises(UsageError, match=r"1 more is of the model alone: .* --classes flat,upright,NAME1"):
        init(given=given)
    for name in ("slanted", "won't do"):
        shutil.copytree(repository / "shapes/flat", repository / "shapes" / name)
    (repository / "shapes/won't do/000.png").unlink()
    said = r"4 classes: flat \(20\), slanted \(20\), upright \(20\), won't do \(19\)"
    with pytest.raises(UsageError, match=rf"(?s){said}.*--classes flat,slanted,upright") as told:
        init(given=given)
    assert shlex.split(str(told.value).partition("--label ")[2]) == ["won't do=CLASS"]  # as a shell reads it
    assert not (repository / "params.yaml").exists()


def test_what_would_be_refused_later_is_refused_before_anything_is_written(repository):
    before = left(repository)
    for given, said in (
        ({"probes": 50}, "--probes 50: too few for 9 concepts, expected 100 or more"),
        ({"budget": 10**7}, "--budget 10000000: more than there are pairs"),
        ({"answers": {"architecture": "resnet18"}}, "weights"),
        (
            {"answers": {"classes": "upright,flat,slanted", "repair": False}},
            r"(?s)0% of 60 unchanged pictures are right.*Say --classes flat,slanted,upright",
        ),
    ):
        with pytest.raises(UsageError, match=said):
            init(given=options(**given))
        assert left(repository) == before
