"""Several answers drawn in each probe of a chat model, all of which have to be right, or one of them."""

import dataclasses

import numpy as np
import pytest

pytest.importorskip("transformers")

from stages.tasks.chat import Chat
from stages.tasks.chat.playing import Draws, answer_in, draws_in
from tests import test_chat_conversations as talks
from tests.endpoints import completion, served
from tests.test_chat import context, lines, write
from tests.tiny_models import tiny_causal, tiny_embedder

CONCEPTS = {"politeness": ["neutral", "rude"]}
DRAWN = {"max_new_tokens": 8, "temperature": 0.7, "draws": 4}
WRONG = Draws(0.7, 4, 3).seed_of(2)  # the seed of the third draw, in audits with the seed 3
RIGHT = {one["question"]: one["answers"][0] for one in lines()}


@pytest.fixture(autouse=True)
def here(tmp_path, monkeypatch):
    """Accounts are kept here, and need not outlast a crash of the machine."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("os.fsync", lambda file: None)


@pytest.fixture(scope="module")
def inputs(tmp_path_factory):
    folder = write(tmp_path_factory.mktemp("draws") / "inputs", lines())
    tiny_causal(folder / "model")
    tiny_embedder(folder / "embedder")
    return folder


def mostly(request):
    """Answers rightly, apart from the third draw, and from rude questions."""
    said = request["messages"][-1]["content"]
    wrong = request["seed"] == WRONG or "idiot" in said or "stupid" in said or "useless" in said
    return completion("Nobody." if wrong else next((RIGHT[one] for one in RIGHT if one in said), "Yes."))


def of(inputs, model, fails_if="any", **prepare):
    block = {"openai": f"{model.url}/v1", "model": "tiny"} if model else {"transformers": "model"}
    settings = {"validity": -1, "fails_if": fails_if}
    return context(inputs, concepts=CONCEPTS, discrepancy=settings, **{"model": block, "generation": DRAWN, **prepare})


def loaded(given, out):
    out.mkdir()
    return Chat.prepare(given, out), Chat.load(given, out)


def test_a_probe_fails_if_any_or_all_of_its_answers_do_and_all_are_kept(inputs, tmp_path):
    with served(mostly, whole=True) as model:
        metrics, task = loaded(of(inputs, model), tmp_path / "prepare")
        ids = task.items.ids("discover")
        cells = np.array([[k % 2] for k in range(len(ids))])
        worst, asked = task.probe(ids, cells), len(model.requests)
        best = Chat.load(of(inputs, model, "all"), tmp_path / "prepare").probe(ids, cells)
        again = model.requests[asked:]
    drawn = [one for one in model.requests[:asked] if one["temperature"]]
    assert worst.failed.all() and best.failed.tolist() == [bool(k % 2) for k in range(len(ids))]
    assert [draws_in(text).count("Nobody.") for text in worst.outputs] == [1, 4] * 6
    assert best.outputs == worst.outputs and not any(one["temperature"] for one in again), "nothing is drawn twice"
    assert len({one["seed"] for one in drawn}) == 4 and len(drawn) == 4 * (12 + 6)
    assert metrics["clean_accuracy"] == {"discover": 0.0} and metrics["clean_words"] < 3
    assert "4 times at temperature 0.7, and fails if any of its answers does." in task.notes()[-1]


def test_draws_of_weights_that_are_here_differ_and_depend_on_their_probe_alone(inputs, tmp_path):
    given = of(inputs, None, items={"discover": 4})
    _, task = loaded(given, tmp_path / "prepare")
    ids, cells = task.items.ids("discover"), np.array([[0], [1], [1], [0]])
    outputs = task.probe(ids, cells).outputs
    other = Chat.load(given, tmp_path / "prepare")
    assert outputs == [other.probe([i], c[None]).outputs[0] for i, c in zip(ids, cells, strict=True)]
    assert all(len(draws_in(text)) == 4 for text in outputs) and len(set(draws_in(outputs[0]))) > 1
    reseeded = Chat.load(dataclasses.replace(given, seed=4), tmp_path / "prepare")
    assert reseeded.probe(ids[1:2], cells[1:2]).outputs != outputs[1:2]


def test_each_draw_of_a_conversation_has_its_own_history(tmp_path, inputs):
    def echoes(request):
        replies = [one["content"] for one in request["messages"] if one["role"] == "assistant"]
        return completion(" ".join([*replies, f"{request['seed']}."]))

    rows = [{"id": f"t{k}", "turns": [f"Plan {k}.", "Well.", "When?"], "answers": ["Now"]} for k in range(6)]
    folder = write(tmp_path / "inputs", rows)
    (folder / "embedder").symlink_to(inputs / "embedder")
    with served(echoes, whole=True) as model:
        given = talks.context(folder, model, concepts={"turn_1": ["none", "small_talk"]}, generation=DRAWN)
        _, task = loaded(given, tmp_path / "prepare")
        [output] = task.probe(["t1"], np.array([[1]])).outputs
    seeds = [str(Draws(0.7, 4, 3).seed_of(k)) for k in range(4)]
    assert [answer_in(text) for text in draws_in(output)] == [f"{s}. {s}. {s}. {s}." for s in seeds]


def test_the_plan_counts_every_draw(inputs):
    given = {"concepts": CONCEPTS, "model": {"openai": "http://127.0.0.1:9/v1", "model": "m"}}
    asked = [context(inputs, generation=one, **given) for one in ({"max_new_tokens": 8}, DRAWN)]
    counted = [Chat.expected_requests(one) for one in asked]
    assert [one.by_probe for one in counted] == [1, 4] and counted[1].preparing - counted[0].preparing == 3 * 12


@pytest.mark.parametrize(
    ("prepare", "said"),
    [
        ({"generation": {"draws": 3}}, "at temperature 0 all answers are the same"),
        ({"generation": {"temperature": 1, "chat": False}}, "temperature: needs the model's chat template"),
        ({"generation": DRAWN, "judge": {"transformers": "model"}}, "draws: a judge decides on single answers"),
        (
            {"generation": DRAWN, "model": {"openai": "http://127.0.0.1:9/v1", "model": "m", "settings": {"seed": 1}}},
            "sets temperature and seed of each request; found seed",
        ),
    ],
)
def test_what_cannot_be_drawn_is_told_before_anything_runs(inputs, prepare, said):
    assert any(said in error for error in Chat.check(context(inputs, concepts=CONCEPTS, **prepare)))
