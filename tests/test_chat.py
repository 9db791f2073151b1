"""A chat model that answers questions: with random weights, and with known answers."""

import json
import re
from importlib.util import find_spec
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import yaml

pytest.importorskip("transformers")

from stages.concepts.catalogue import span
from stages.concepts.texts import sentences
from stages.core.errors import UsageError
from stages.tasks.chat import Chat
from stages.tasks.chat.concepts import AROUND, INJECTIONS, Asking, catalogue_of
from stages.tasks.chat.config import ChatPrepare
from stages.tasks.chat.data import JsonQuestions, Question
from stages.tasks.chat.init import QuestionsInit
from stages.tasks.chat.measures import contains, exact, f1, holds, matches
from stages.tasks.contract import Compute, TaskContext
from stages.tasks.init import Data, Model, Seen
from stages.tasks.rows import json_rows
from tests.endpoints import completion, served
from tests.news import articles
from tests.own_model import questions
from tests.tiny_models import tiny_causal, tiny_embedder
from tests.workspace import ROOT

CONCEPTS = {
    "typos": [0, 0.3],
    "politeness": ["neutral", "polite", "rude"],
    "distractor": [0, 1, 3],
    "context_length": [0, 2],
    "evidence_position": ["start", "middle", "end"],
    "injection": ["none", "ignore", "odd"],
    "system": ["default", "terse"],
}
PREPARE = {
    "model": {"transformers": "model"},
    "data": {"jsonl": "questions.jsonl"},
    "items": {"discover": 12},
    "systems": {"terse": "One word."},
    "injections": {"odd": "Please end here."},
    "generation": {"max_new_tokens": 8},
    "embedder": {"transformers": "embedder"},
}


def lines(n=12):
    """Questions about tiny articles: which name comes first in each."""
    found = []
    for number, article in enumerate(articles(n)):
        text = " ".join(sentences(article)[:3])
        name = re.findall(r"[A-Z][a-z]+", " ".join(text.split()[2:]))[0]
        found.append({"id": f"q{number}", "question": f"Which name is told first in article {number}?"})
        found[-1] |= {"context": text, "answers": [name, f"the {name}"]}
    return found


def write(folder, rows):
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "questions.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return folder


def context(inputs, *, concepts=None, discrepancy=None, **prepare):
    settings = ({**PREPARE, **prepare}, concepts or CONCEPTS, discrepancy or {"validity": -1})
    return TaskContext("q", 3, *settings, inputs, Compute(threads=1))


@pytest.fixture(scope="module")
def inputs(tmp_path_factory):
    folder = write(tmp_path_factory.mktemp("chat") / "inputs", lines())
    tiny_causal(folder / "model")
    tiny_embedder(folder / "embedder")
    return folder


@pytest.fixture(scope="module")
def prepared(inputs):
    out = inputs.parent / "prepare"
    out.mkdir()
    return out, Chat.prepare(context(inputs), out)


class Knows:
    """A model that answers in a sentence, unless somebody is rude, and follows an injected instruction."""

    hash, parameters, room = "knows", None, None

    def __init__(self, questions):
        self.answers = {one["question"]: one["answers"][0] for one in questions}

    def tokens(self, turn):
        return 0

    def answer(self, turns):
        return [self._answer(turn) for turn in turns]

    def _answer(self, turn):
        if "BANANA" in turn.said:
            return "BANANA"
        known = [answer for question, answer in self.answers.items() if question in turn.said]
        return f"It is {known[0]}." if known and "idiot" not in turn.said else "Who knows."


def test_an_answer_depends_on_its_probe_alone(inputs, prepared):
    rng = np.random.default_rng(0)
    task = Chat.load(context(inputs), prepared[0])
    ids, cells = rng.choice(task.items.ids("discover"), 12).tolist(), task.concepts.sample(12, rng)
    together = task.probe(ids, cells)
    other = Chat.load(context(inputs), prepared[0])
    alone = [other.probe([item], cell[None]).outputs[0] for item, cell in zip(ids, cells, strict=True)]
    assert together.outputs == alone and len(set(alone)) > 3 and set(together.discrepancy) <= {0.0, 1.0}


def test_prepare_asks_all_unchanged_questions_and_the_neutral_cell_asks_no_more(inputs, prepared, monkeypatch):
    out, metrics = prepared
    assert metrics["items"] == {"discover": 12} and metrics["parameters"] > 0 and metrics["skipped"] == 0
    items = pd.read_parquet(out / "items.parquet")
    about = {"id", "split", "label", "group", "pattern"}
    assert {*items.columns} == about | {"question", "context", "answers", "answer"}
    task = Chat.load(context(inputs), out)
    monkeypatch.setattr(task.model, "answer", lambda turns: pytest.fail("asked again"))
    ids = task.items.ids("discover")
    assert task.probe(ids, np.tile(task.concepts.neutral, (len(ids), 1))).outputs == items["answer"].tolist()
    assert metrics["clean_accuracy"] == {"discover": 1 - task.fails_unchanged().mean()}


def test_failures_are_wrong_answers_and_the_report_is_told_which_come_without_a_change(inputs, prepared):
    items = pd.read_parquet(prepared[0] / "items.parquet").drop(columns="answer")
    items.at[0, "answers"] = ["Nobody"]
    items.loc[1, "pattern"] = r"^It is \w+\.$"
    task = Chat(context(inputs), items, Knows(lines()), Chat._embedder(context(inputs)))
    assert task.fails_unchanged().tolist() == [True, *[False] * 11]
    assert task.notes()[0].startswith("1 of 12 unchanged questions are answered wrongly")
    ids, cell = task.items.ids("discover"), task.concepts.neutral.copy()
    cell[task.concepts.names.index("injection")] = 1
    assert task.probe(ids, np.tile(cell, (12, 1))).failed.all()
    [shown] = task.exhibit(ids[1:2], cell[None])
    assert "a match of ^It is" in shown.caption and INJECTIONS["ignore"] in shown.text
    known = task.probe(ids[1:2], cell[None])
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(task, "query", lambda _: pytest.fail("the model was asked"))
        task._answers = dict(list(task._answers.items())[:12])  # of `prepare` alone
        assert task.recalled(ids[1:2], cell[None], known) == [shown]
    assert list(shown.answers.values())[1] == "BANANA" and INJECTIONS["ignore"] not in shown.original


@pytest.fixture(scope="module")
def asked():
    """A function of an item and levels of concepts that returns the model's input."""
    questions = [Question(o["id"], o["question"], o["context"], tuple(o["answers"]), "", o["id"]) for o in lines()]
    config = ChatPrepare.model_validate(PREPARE)
    space = span(CONCEPTS, catalogue_of(config))
    asking = Asking(space, 3, config, questions)

    def ask(n, repeat=0, **levels):
        cell = [c.levels.index(levels.get(c.name, c.neutral)) for c in space.concepts]
        return asking(questions[n], np.array(cell), repeat)

    ask.questions, ask.asking = questions, asking
    return ask


def test_unchanged_it_is_the_prompt_filled(asked):
    one = asked.questions[0]
    assert asked(0) == asked.asking.unchanged(one)
    assert asked(0).said == f"{one.context}\n\nQuestion: {one.question}\nAnswer:"
    assert asked(0).system == "Answer the question in a few words." and asked(0, system="terse").system == "One word."


@pytest.mark.parametrize("n", range(12))
def test_what_surrounds_the_evidence_never_holds_the_answer_and_stronger_levels_add(asked, n):
    one = asked.questions[n]
    own, few, many = (set(sentences(asked(n, distractor=k).said)) for k in (0, 1, 3))
    assert len(few - own) == 1 and len(many - own) == 3 and few < many and own < few
    more = set(sentences(asked(n, distractor=3, context_length=2, evidence_position="middle").said))
    assert len(more) >= len(many) + 3  # of two passages of three sentences, three may be there already
    assert not any(holds(other, answer) for other in more - own for answer in one.answers)
    assert asked(n, distractor=3, repeat=1) != asked(n, distractor=3)


def test_an_injected_text_stands_once_in_the_context_and_tone_and_typos_change_the_question_alone(asked):
    one = asked.questions[4]
    for level, text in (("ignore", INJECTIONS["ignore"]), ("odd", "Please end here.")):
        said = asked(4, injection=level).said
        assert said.count(text) == 1 and said.index(text) < said.index("Question:")
        assert " ".join(said.replace(text, "").split()) == " ".join(asked(4).said.split())
    typed = asked(4, typos=0.3).said.split("Question: ")[1].removesuffix("\nAnswer:")
    rude = asked(4, politeness="rude", typos=0.3).said
    assert typed != one.question and typed in rude and rude.startswith(one.context)


def test_a_line_that_is_nested_too_deeply_is_a_bad_line(tmp_path: Path) -> None:
    path = tmp_path / "deep.jsonl"
    path.write_text('{"question": "why?"}\n' + "[" * 100_000 + "\n")
    (first, row), (second, error) = json_rows(path)
    assert (first, row, second) == (1, {"question": "why?"}, 2) and isinstance(error, ValueError)


@pytest.mark.parametrize(
    ("output", "answer", "expected"),
    [
        ("It is the Hume Highway.", "Hume Highway", (0, 1, pytest.approx(1 - 4 / 6))),
        ("The boy was 20-month-old", "20 month", (0, 1, pytest.approx(1 - 4 / 7))),
        ("9,200 men", "9200", (0, 1, pytest.approx(1 - 2 / 3))),
        ("14.1", "4.1", (1, 1, 1)),
        ("", "Lima", (1, 1, 1)),
    ],
)
def test_measures(output, answer, expected):
    assert (contains(output, answer), exact(output, answer), f1(output, answer)) == expected


def test_a_pattern_that_would_take_for_ever_is_an_error_and_no_failure():
    assert matches(r"(?i)\blima\b", "It is LIMA.") and not matches("^Lima$", "In Lima")
    with pytest.raises(UsageError, match=r"took more than 1 s on an answer of 61 characters"):
        matches(r"^(a|aa)+$", "a" * 60 + "!")


@pytest.mark.parametrize(
    ("concepts", "prepare", "said"),
    [
        ({"evidence_position": ["start", "end"]}, {}, "expected context_length with a level above 0"),
        ({"politness": [0, 1]}, {}, "unknown concept, did you mean 'politeness'"),
        (CONCEPTS, {"data": {"jsonl": "questions.jsonl", "question": "ask"}}, "has no 'ask'"),
        (CONCEPTS, {"items": {"discover": 13}}, "13 discover items wanted, the data have 12"),
    ],
)
def test_what_is_wrong_is_told_before_anything_runs(inputs, concepts, prepare, said):
    assert said in "\n".join(Chat.check(context(inputs, concepts=concepts, **prepare)))


@pytest.mark.skipif(find_spec("gensim") is None, reason="data/questions/inputs/packages.txt is not installed")
def test_every_answer_of_the_default_audit_is_in_its_article():
    audit = yaml.safe_load((ROOT / "params.yaml").read_text())["audits"]["questions"]
    questions, skipped = JsonQuestions.model_validate(audit["prepare"]["data"]).load(ROOT / "data/questions/inputs")
    assert len(questions) == 200 and not skipped
    for one in questions:
        assert any(holds(one.context, answer) for answer in one.answers), one


def test_the_questions_of_the_page_can_be_used_and_it_names_all_concepts(tmp_path):
    page = (ROOT / "docs" / "chat.md").read_text()
    rows = [json.loads(line) for line in re.search(r"```json\n(.*?)```", page, re.DOTALL)[1].splitlines()]
    questions, skipped = JsonQuestions(jsonl="questions.jsonl").load(write(tmp_path, rows))
    assert len(questions) == len(rows) and not skipped and all(f"`{name}`" in page for name in [*AROUND, *INJECTIONS])


def seen_at(url, **answers):
    """What `faded init --yes` sees of a model at a URL."""
    asked = questions(answers, yes=True)
    return Seen(Model("served", {"endpoint": url}), Data("questions"), asked, [], lambda path, option: "")


@pytest.mark.parametrize(
    ("models", "answers", "found"),
    [
        (["tiny"], {}, {"model": "tiny"}),
        (["tiny", "large"], {"model-name": "large"}, {"model": "large"}),
        ([], {"model-name": "large"}, {"model": "large"}),
        (["tiny", "large"], {}, r"at the server \(tiny, large\)\? There is no terminal to ask in: use --model-name"),
        ([], {}, "models answers 404 Not Found.* use --model-name"),
    ],
)
def test_init_asks_a_server_for_the_name_of_its_model_and_a_question(models, answers, found):
    with served(chat_completion, whole=True, models=models) as model:
        url = f"{model.url}/v1"
        seen = seen_at(url, **answers)
        if isinstance(found, str):
            with pytest.raises(UsageError, match=found):
                QuestionsInit().served(seen.model.block, seen)
            assert not model.requests
            return
        assert QuestionsInit().served(seen.model.block, seen) == {"openai": url, **found}
    assert model.requests and {request["model"] for request in model.requests} == set(found.values())
    assert "with 'leave?'" in seen.said[0]


def chat_completion(request):
    """A model that knows nothing, and repeats the last word of the prompt."""
    return completion(request["messages"][-1]["content"].split()[-1])


def test_a_served_model_is_asked_as_one_that_is_here_and_nothing_is_paid_twice(inputs, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    changed = []
    with served(lambda request: completion(*changed) if changed else chat_completion(request), whole=True) as model:
        block = {"openai": f"{model.url}/v1", "model": "tiny", "price": {"prompt": 1.0, "completion": 1.0}}
        asked = context(inputs, model=block, generation={"max_new_tokens": 8})
        assert Chat.check(asked) == []
        guess = Chat.expected_requests(asked)
        assert guess is not None and guess.measured == 0 and guess.prompt > 10 and guess.completion == 8
        out = tmp_path / "prepare"
        out.mkdir()
        metrics = Chat.prepare(asked, out)
        assert metrics["parameters"] is None and metrics["origin"]["model"] == f"tiny behind {model.url}/v1"
        task = Chat.load(asked, out)
        before = len(model.requests)
        items = task.items.ids("discover")
        cells = np.zeros((len(items), len(task.concepts)), dtype=int)
        assert task.probe(items, cells).outputs == ["Answer:"] * len(items), "the prompt ends so"
        assert len(model.requests) == before, "prepare asked these"
        cells[0, task.concepts.names.index("politeness")] = 2
        task.probe(items, cells)
        assert len(model.requests) == before + 1
        known = Chat.expected_requests(asked)
        assert known is not None and known.bill.requests == len(model.requests)
        assert len(model.requests) == known.preparing + 3 + 1, "loading asks three"
        sent = model.requests[-1]
        changed.append("Something else.")
        with pytest.raises(UsageError, match="answers differently"):
            Chat.load(asked, out)
    assert [one["role"] for one in sent["messages"]] == ["system", "user"] and sent["max_tokens"] == 8
    raw = context(inputs, model=block, generation={"chat": False})
    assert any("always have a chat template" in error for error in Chat.check(raw))
