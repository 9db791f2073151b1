"""Repairs of a summarizer: an adapter that learns, resumes and is read back, and normalisation without training."""

import copy
import dataclasses
import hashlib
import json
import shutil

import numpy as np
import pytest
import torch

from stages.concepts import Region
from stages.core.errors import UsageError
from stages.tasks.contract import Compute, Pair, ProbeBatch, RatedExample, RepairPlan, TargetMode, TaskContext
from tests.alone import load_alone
from tests.tiny_models import tiny_causal, tiny_embedder, tiny_seq2seq
from tests.weights import same

pytest.importorskip("peft")

from stages.tasks.language import training as training_module
from stages.tasks.language.form import load_form
from stages.tasks.language.models import load_summarizer
from stages.tasks.language.normalise import NORMALISATIONS, normaliser
from stages.tasks.language.training import LanguageTraining, token_logits
from stages.tasks.summarization import Summarization
from stages.tasks.summarization.config import SummaryRepair
from stages.tasks.summarization.pairs import Lessons, build_must_pass, build_pairs
from stages.tasks.summarization.repair import repair

pytestmark = pytest.mark.usefixtures("read_here")
UPPER = TargetMode("M1", Region({"letter_case": (1,)}))
SHUFFLED = TargetMode("M2", Region({"letter_case": (0,), "word_order": (1,)}), severity=3.0)
QUICK = {"method": "lora", "targets": "reference", "min_faithfulness": -1.0, "steps": 8, "batch_size": 4, "rank": 2}
FULL = {"method": "full", "learning_rate": 1e-3}
PREFER = {"method": "dpo", "rejected": "degraded", "beta": 0.5}
PLACES = ("Perth", "Hobart", "Darwin", "Cairns", "Geelong", "Ballarat", "Bendigo", "Mackay", "Broome", "Albany")
THINGS = ("bridge", "library", "market", "railway", "hospital", "harbour", "theatre", "museum", "school", "stadium")


def context(inputs, concepts=None):
    """An audit of a tiny chat model on articles that all look alike."""
    inputs.mkdir(parents=True, exist_ok=True)
    if not (inputs / "model").exists():
        tiny_causal(inputs / "model")
        tiny_embedder(inputs / "embedder")
        lines = [
            {
                "text": f"The council of {place} said on Monday that the new {thing} will open in March. Police"
                f" arrested two men after a fire in the old {other}. The minister said in {place} that talks failed.",
                "summary": f"A new {thing} opens in {place}.",
            }
            for i, place in enumerate(PLACES)
            for thing, other in [(THINGS[i], THINGS[i - 3])]
        ]
        (inputs / "articles.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    config = {
        "model": {"transformers": "model"},
        "data": {"jsonl": "articles.jsonl", "text": "text", "summary": "summary", "min_words": 20},
        "items": {"discover": 2, "repair": 6, "test": 2},
        "generation": {"max_new_tokens": 6},
        "embedder": {"transformers": "embedder"},
    }
    asked = (
        concepts or {"letter_case": ["as_is", "upper"], "word_order": [0, 4]},
        {"threshold": 0.1, "validity": -1.0},
    )
    return TaskContext("tiny", 7, config, *asked, inputs, Compute(threads=1, batch_size=4))


@pytest.fixture(scope="module")
def home(tmp_path_factory):
    home = tmp_path_factory.mktemp("tiny")
    (home / "prepare").mkdir()
    Summarization.prepare(context(home / "inputs"), home / "prepare")
    return home


@pytest.fixture
def task(home):
    return Summarization.load(context(home / "inputs"), home / "prepare")


def plan(modes=(UPPER,), control=None, examples=(), scratch=None, seed=7, **settings):
    asked = {**QUICK, **settings}
    if asked["method"] == "full":
        del asked["rank"]
    return RepairPlan(list(modes), asked, seed, control, examples=examples, scratch=scratch)


def pairs_of(task, asked):
    return build_pairs(task, asked, SummaryRepair.model_validate(dict(asked.settings)))


def lessons_of(task, asked):
    """The settings of a plan, the items it learns from, and the lessons of its steps."""
    settings, pairs = SummaryRepair.model_validate(dict(asked.settings)), pairs_of(task, asked)
    return settings, pairs, Lessons(task, asked, settings, pairs, build_must_pass(task, asked, settings))


def lessons(task, asked, steps=6):
    give = lessons_of(task, asked)[2]
    return [lesson for step in range(steps) for lesson in give(step)]


def example(task, cell=(1, 1), **said):
    return RatedExample("M1", task.items.ids("discover")[0], cell, "The bridge opens. It", **said)


@pytest.fixture(scope="module")
def repaired(home, tmp_path_factory):
    task, out = Summarization.load(context(home / "inputs"), home / "prepare"), tmp_path_factory.mktemp("repaired")
    before = {name: tensor.clone() for name, tensor in task.summarizer.model.state_dict().items()}
    return task, out, task.repair(plan(steps=25, learning_rate=1e-2, merged=True), out), before


def test_the_loss_falls_and_the_model_under_test_stays_as_it_was(repaired):
    task, _, record, before = repaired
    assert (record.method, record.steps, list(record.curve["step"])) == ("lora", 25, list(range(1, 26)))
    assert record.details["loss_last"] < 0.8 * record.details["loss_first"]
    after = task.summarizer.model.state_dict()
    assert list(after) == list(before) and all(torch.equal(after[name], before[name]) for name in before)


def test_the_adapter_reads_back_and_differs_from_its_base(repaired, home):
    task, out, _, _ = repaired
    loaded = Summarization.load(task.context, home / "prepare", out)
    asked = lessons(task, plan(), steps=1)
    assert loaded.summarizer.hash != task.summarizer.hash and load_form(out).base == task.summarizer.hash
    names = json.loads((out / "adapter_config.json").read_text())["target_modules"]
    assert names == sorted(names), "the same bytes in every process"
    assert not torch.allclose(token_logits(loaded.summarizer, asked), token_logits(task.summarizer, asked), atol=0.05)
    whole = load_summarizer(out / "merged", task.context.compute)
    assert torch.allclose(token_logits(whole, asked), token_logits(loaded.summarizer, asked), atol=1e-5)


def test_an_adapter_goes_part_of_the_way(repaired, home, tmp_path):
    task, learnt, _, _ = repaired
    asked, base = lessons(task, plan(), steps=1), home / "prepare" / "model"
    answers = {}
    for share in (0.0, 0.5, 1.0):
        task.move(learnt, share, out := tmp_path / str(share))
        assert {path.name for path in out.rglob("*")} == {path.name for path in learnt.rglob("*")}
        answers[share] = token_logits(load_summarizer(out, task.context.compute, base), asked)
        whole = token_logits(load_summarizer(out / "merged", task.context.compute), asked)
        assert torch.allclose(whole, answers[share], atol=1e-5)
    start = (tmp_path / "0.0", tmp_path / "0.0" / "merged")
    unmoved = [load_summarizer(folder, task.context.compute, base).model.state_dict() for folder in start]
    assert all(same(one, task.summarizer.model.state_dict()) for one in unmoved)
    # Merged weights lie elsewhere in memory, so sums over them may differ in their last bits.
    assert torch.allclose(answers[0.0], token_logits(task.summarizer, asked), atol=1e-5)
    assert torch.equal(answers[1.0], token_logits(load_summarizer(learnt, task.context.compute, base), asked))
    halves = [float((answers[0.5] - answers[end]).norm()) for end in (0.0, 1.0)]
    assert 0 < max(halves) < float((answers[1.0] - answers[0.0]).norm())


def test_the_card_says_what_was_done(repaired):
    task, out, record, _ = repaired
    card = (out / "README.md").read_text()
    for part in (task.summarizer.hash, "letter_case is upper", "learning_rate 0.01", "targets: reference", "M1"):
        assert part in card
    assert f"{record.details['trained_parameters']:,}" in card
    assert "samples" not in card  # references are not affected
    assert "its reference may tell what the model cannot see" in card


def test_the_adapter_is_loaded_and_asked_without_faded(repaired, home, tmp_path):
    task, out, _, _ = repaired
    articles = task.items.table["article"].tolist()[:3]
    known = load_summarizer(out, task.context.compute, home / "prepare" / "model").summarize(articles)
    assert known != task.summarizer.summarize(articles)
    found = alone(tmp_path, out, articles, home / "prepare" / "model")
    assert found == [line for summary in known for line in summary.splitlines()]


@pytest.mark.slow
def test_a_whole_model_is_loaded_and_asked_without_faded(tmp_path):
    inputs = tmp_path / "inputs"
    asked = context(inputs)
    shutil.rmtree(inputs / "model")
    tiny_seq2seq(inputs / "model", family="t5")
    generation = {"max_new_tokens": 9, "num_beams": 2, "prefix": "summarize: ", "no_repeat_ngram_size": 2}
    asked = dataclasses.replace(asked, config={**asked.config, "generation": generation})
    (tmp_path / "prepare").mkdir()
    Summarization.prepare(asked, tmp_path / "prepare")
    task = Summarization.load(asked, tmp_path / "prepare")
    task.repair(plan(**FULL), tmp_path / "out")
    articles = task.items.table["article"].tolist()[:3]
    known = load_summarizer(tmp_path / "out", asked.compute, tmp_path / "prepare" / "model").summarize(articles)
    found = alone(tmp_path, tmp_path / "out", articles)
    assert found == [line for summary in known for line in summary.splitlines()]


def alone(folder, model, articles, *base):
    """The lines of what load.py of a model prints for articles."""
    files = [folder / f"{number}.txt" for number in range(len(articles))]
    for file, article in zip(files, articles, strict=True):
        file.write_text(article, encoding="utf-8")
    return load_alone(model, *base, *files, cwd=folder)


def test_a_killed_repair_resumes_to_the_same_weights(task, tmp_path, monkeypatch):
    monkeypatch.setattr(training_module.LanguageTraining, "save_every", 2)
    asked = {**PREFER, "steps": 5}
    task.repair(plan(**asked), tmp_path / "whole")

    class Killed(BaseException):
        pass

    backward, steps = training_module.LanguageTraining.backward, []

    def dies(self, given):
        steps.append(given)
        if len(steps) == 4:
            raise Killed
        return backward(self, given)

    monkeypatch.setattr(training_module.LanguageTraining, "backward", dies)
    with pytest.raises(Killed):
        task.repair(plan(scratch=tmp_path / "scratch", **asked), tmp_path / "out")
    assert not (tmp_path / "out").exists()
    steps.clear()
    monkeypatch.setattr(training_module.LanguageTraining, "backward", lambda s, g: steps.append(g) or backward(s, g))
    record = task.repair(plan(scratch=tmp_path / "scratch", **asked), tmp_path / "out")
    assert len(steps) == 3  # of 5; 2 were kept, the third was lost
    assert record.steps == 5
    name = "adapter_model.safetensors"
    assert (tmp_path / "out" / name).read_bytes() == (tmp_path / "whole" / name).read_bytes()
    card = (tmp_path / "out" / "README.md").read_text()
    assert "one to reject (degraded)" in card and "nats a preference" in card


def test_a_repair_that_changes_nothing_is_no_repair(task, tmp_path):
    with pytest.raises(UsageError, match=r"answers exactly as before.*learning_rate"):
        task.repair(plan(steps=1, learning_rate=1e-30), tmp_path)


@pytest.mark.slow
def test_all_weights_learn_and_are_read_back_as_a_whole_model(task, home, tmp_path):
    before = {name: tensor.clone() for name, tensor in task.summarizer.model.state_dict().items()}
    record = task.repair(plan(steps=20, **FULL), out := tmp_path / "learnt")
    assert record.details["loss_last"] < record.details["loss_first"]
    assert record.details["trained_parameters"] == task.summarizer.form.parameters
    assert all(torch.equal(task.summarizer.model.state_dict()[name], tensor) for name, tensor in before.items())
    loaded = Summarization.load(task.context, home / "prepare", out)
    assert loaded.summarizer.hash != task.summarizer.hash and loaded.summarizer.form.base == task.summarizer.hash
    asked = lessons(task, plan(), steps=1)
    learnt, before = token_logits(loaded.summarizer, asked), token_logits(task.summarizer, asked)
    assert not torch.allclose(learnt, before, atol=0.01)
    task.move(out, 0.5, tmp_path / "half")
    half = token_logits(Summarization.load(task.context, home / "prepare", tmp_path / "half").summarizer, asked)
    assert 0 < max((half - learnt).norm(), (half - before).norm()) < (learnt - before).norm()
    card = (out / "README.md").read_text()
    assert "All weights of the model" in card and "learning_rate 0.001" in card and "rank" not in card
    assert SummaryRepair(method="full").peak_rate == 2e-5 and SummaryRepair(method="lora").peak_rate == 1e-3
    with pytest.raises(ValueError, match="rank: an effect with an adapter only"):
        SummaryRepair(method="full", rank=4)


def test_a_preference_is_learnt(task):
    settings, _, give = lessons_of(task, plan(**PREFER, learning_rate=1e-2, replay=0.0))
    learner = copy.copy(task.summarizer)
    learner.model = copy.deepcopy(learner.model)
    training = LanguageTraining(learner, give, settings, 10, seed=7)
    with torch.no_grad():
        assert training.margins(give(0)).tolist() == [0.0] * 4, "an adapter begins as nothing"
    curve = training.run("test")
    with torch.no_grad():
        assert training.margins(give(0)).min() > 0.5
    assert curve["loss"].iloc[0] == pytest.approx(np.log(2), abs=1e-6) and curve["loss"].iloc[-1] < 0.5


def test_a_margin_is_over_tokens_against_the_model_without_its_adapter(task):
    settings, _, give = lessons_of(task, plan(**PREFER, learning_rate=5e-3))
    learner = copy.copy(task.summarizer)
    learner.model = copy.deepcopy(learner.model)
    training = LanguageTraining(learner, give, settings, 3, seed=7)
    training.run("test")
    lesson = give(0)[0]

    def likelihood(model, summary):
        batch = learner.training_batch([lesson.article], [summary])
        loss = model(**batch).loss  # the mean over the tokens of the summary
        return -float(loss) * (1 if per_token else int((batch["labels"] >= 0).sum()))

    for per_token in (False, True):
        training.settings = settings.model_copy(update={"per_token": per_token})
        with torch.no_grad():
            told = float(training.margins([lesson])[0])
            better, worse = (
                likelihood(training.model, summary) - likelihood(task.summarizer.model, summary)
                for summary in (lesson.summary, lesson.rejected)
            )
        assert told == pytest.approx(better - worse, abs=1e-3)


def test_what_the_model_says_where_it_fails_is_rejected(task):
    _, pairs, _ = lessons_of(task, plan(**PREFER))
    answer = task.probe([pair.item for pair in pairs], np.array([pair.cell for pair in pairs]))
    assert [pair.rejected for pair in pairs] == answer.outputs and answer.failed.all()
    assert all(UPPER.region.contains(task.concepts, np.array([pair.cell for pair in pairs])))


def test_a_clean_control_is_given_the_same_preferences_in_the_same_order(task):
    given = lessons(task, plan((UPPER, SHUFFLED), **PREFER))
    clean = lessons(task, plan((UPPER, SHUFFLED), control="clean", **PREFER))
    assert [lesson[1:] for lesson in clean] == [lesson[1:] for lesson in given]
    assert {lesson.article for lesson in clean} <= set(task.items.table["article"])
    assert any(lesson.article.isupper() for lesson in given)


def test_lessons_are_changed_by_the_target_modes_and_partly_replayed(task):
    given = lessons(task, plan(replay=0.25), steps=6)
    originals = set(task.items.table["article"])
    assert sum(article in originals for article, *_ in given) == 6  # one of four
    changed = [article for article, *_ in given if article not in originals]
    assert all(article == article.upper() for article in changed)
    wanted = dict(zip(task.items.table["article"].str.upper(), task.items.table["reference"], strict=True))
    assert [s for a, s, _ in given if a in wanted] == [wanted[a] for a, *_ in given if a in wanted]
    assert lessons(task, plan(replay=0.25), steps=6) == given


def test_people_teach_corrected_and_praised_answers(task):
    said = [example(task, corrected="A bridge opens in March.")]
    said += [example(task, rating=rating) for rating in (8, 7, None)]
    asked = plan(examples=said, replay=0.0)
    pairs = pairs_of(task, asked)
    taught = [pair.summary for pair in pairs if pair.cell is not None]
    assert taught == ["A bridge opens in March.", "The bridge opens."]
    article = task.changed([said[0].item], np.array([[1, 1]]))[0]
    given = [a for a, summary, _ in lessons(task, asked, steps=4) if summary == taught[0]]
    assert given and all(a.isupper() and sorted(a) == sorted(article) for a in given)


SAID = ["A bridge opens in Perth. It was", "Talks failed.", "Two men were arrested in Perth.", "Never", "Yes."]


@pytest.fixture
def passing(task, monkeypatch):
    """Pairs that must pass: the first and third do, the second fails, the fourth's change left too little."""

    def probe(item_ids, cells):
        assert cells.tolist() == [[1, 1]] * 5
        failed, valid = np.arange(5) == 1, np.arange(5) != 3
        return ProbeBatch(failed.astype(np.float32), failed, SAID, valid)

    monkeypatch.setattr(task, "probe", probe)
    return [Pair(item, [1, 1]) for item in task.items.ids("repair")[:5]]


@pytest.mark.parametrize("control", [None, "as_used", "clean"])
def test_pairs_that_must_pass_take_the_place_of_changed_articles_and_change_no_other_lesson(task, passing, control):
    asked = plan(control=control, batch_size=8, replay=0.25)
    steps = [[lessons_of(task, one)[2](step) for step in range(4)] for one in (asked, with_pairs(asked, passing))]
    learnt = []
    for before, after in zip(*steps, strict=True):
        kept = [lesson for lesson in after if lesson.summary in ("A bridge opens in Perth.", SAID[2])]
        assert len(kept) == 2, "a quarter of six changed articles, rounded up"
        assert sum(one != other for one, other in zip(before, after, strict=True)) == 2
        learnt += kept
    wanted = task.changed([passing[0].item, passing[2].item], np.array([[1, 1]] * 2))
    assert sorted(learnt) == sorted(4 * [*zip(wanted, ("A bridge opens in Perth.", SAID[2]), [None] * 2, strict=True)])


def with_pairs(asked, pairs):
    return dataclasses.replace(asked, must_pass=pairs)


def test_with_one_changed_article_a_step_none_is_replaced(task, passing):
    asked = plan(batch_size=2, replay=0.5)
    assert lessons(task, with_pairs(asked, passing)) == lessons(task, asked)


def test_without_pairs_that_must_pass_lessons_are_what_they_were_before_there_were_any(task):
    given = lessons(task, plan((UPPER, SHUFFLED), batch_size=8), steps=6)
    digest = hashlib.sha256(json.dumps(given).encode()).hexdigest()
    assert digest == "e2bcdc304aab0e48a07fe01b087581e87e7d8b4fa4aebd57ca36601234aa1579"


def test_a_summary_to_keep_is_preferred_to_one_with_an_error(task, passing, tmp_path):
    record = task.repair(with_pairs(plan(method="dpo", rejected="falsified", steps=2), passing), tmp_path)
    told = [json.loads(line) for line in (tmp_path / "pairs.jsonl").read_text().splitlines()]
    kept = [one for one in told if one["cell"] == [1, 1]]
    assert [one["summary"] for one in kept] == ["A bridge opens in Perth.", SAID[2]]
    assert all(one["rejected"] not in (None, one["summary"]) for one in kept)
    assert record.details["must_pass_learnt"] == 2 and "summaries of 2 pair(s)" in (tmp_path / "README.md").read_text()


def own_summaries(task, texts):
    """Make these the summaries of the repair items by the model under test."""
    rows = task.rows(task.items.ids("repair"))
    task.items.table.loc[task.items.table.index[rows], "summary"] = texts


def test_own_summaries_are_trimmed_and_filtered(task):
    unusable = ["A fire broke out in the", "Yes.", "", "The men were the men were the men were the men were."]
    own_summaries(task, ["The bridge opens in March. It was", *unusable, "Talks have failed."])
    pairs = pairs_of(task, plan(targets="own"))
    assert [pair.summary for pair in pairs] == ["The bridge opens in March.", "Talks have failed."]
    strict = plan(targets="own", min_faithfulness=min(p.faithfulness for p in pairs) + 1e-6)
    assert len(pairs_of(task, strict)) == 1
    with pytest.raises(UsageError, match="of 6 repair items none has a usable summary"):
        pairs_of(task, plan(targets="own", min_faithfulness=1.0))


def test_the_best_of_several_is_drawn_once(task, tmp_path, monkeypatch):
    own_summaries(task, ["Talks have failed."] * 6)
    drawn = []

    def summarize(articles, *, samples, temperature, seed):
        drawn.append((len(articles), seed))
        return ["Police arrested two men.", "Never", "No."] * len(articles)

    monkeypatch.setattr(task.summarizer, "summarize", summarize)
    asked = plan(targets="best-of", samples=3, scratch=tmp_path)
    pairs = pairs_of(task, asked)
    assert drawn == [(4, 7), (2, 11)]
    for pair in pairs:
        article = task.items.table.set_index("id").loc[pair.item, "article"]
        usable = ("Talks have failed.", "Police arrested two men.")
        assert pair.summary == max(usable, key=lambda text: task.embedder.cosine(text, article))
    # A kill in the middle of the second batch: its line is cut in half.
    first, second = (tmp_path / "draws.jsonl").read_text().splitlines(keepends=True)
    (tmp_path / "draws.jsonl").write_text(first + second[:9])
    assert pairs_of(task, asked) == pairs and drawn[2:] == [(2, 11)] and pairs_of(task, asked) == pairs
    assert len(drawn) == 3


def test_a_repair_needs_items_modes_and_references(task, tmp_path):
    table = task.items.table
    task.items = dataclasses.replace(task.items, table=table[table["split"] != "repair"])
    with pytest.raises(UsageError, match=r"prepare\.items\.repair: a repair needs items to learn from, found 0"):
        task.repair(plan(), tmp_path)
    with pytest.raises(UsageError, match="found 0"):
        task.repair(RepairPlan([UPPER], {"method": "normalise", "normalise": ["letter_case"]}, 7), tmp_path)
    with pytest.raises(UsageError, match="no failure mode"):
        task.repair(plan(()), tmp_path)
    task.items = dataclasses.replace(task.items, table=table.assign(reference=""))
    with pytest.raises(UsageError, match="6 of 6 repair items have no reference"):
        task.repair(plan(), tmp_path)


@pytest.mark.parametrize(
    ("settings", "complaint"),
    [
        ({"method": "lora", "samples": 8}, "targets best-of only, found targets own"),
        ({"method": "lora", "normalise": ["typos"]}, "spelling; found typos"),
        ({"method": "normalise", "normalise": ["spacing"], "steps": 3, "rank": 4}, "steps, rank: no effect"),
    ],
)
def test_settings_without_effect_are_errors(task, settings, complaint, tmp_path):
    with pytest.raises(UsageError, match=complaint):
        repair(task, RepairPlan([UPPER], settings, 7), tmp_path)
    assert any(complaint in line for line in Summarization.check_repair(task.context, settings))


def test_normalise_repairs_upper_case_without_training(task, home, tmp_path):
    asked = RepairPlan([UPPER], {"method": "normalise", "normalise": ["letter_case"]}, 7)
    record = task.repair(asked, tmp_path / "out")
    assert record.steps == 0 and record.details == {"items": 6, "undone": {"M1": 1.0}, "clean_articles_changed": 0}
    assert sorted(path.name for path in (tmp_path / "out").iterdir()) == ["README.md", "faded.json"]
    loaded = Summarization.load(task.context, home / "prepare", tmp_path / "out")
    shout = task.changed(task.items.ids("test"), np.tile([1, 0], (2, 1)))
    assert loaded.answers(shout) == task.summarizer.summarize([normaliser(["letter_case"])(text) for text in shout])
    assert loaded.answers(shout) != task.answers(shout)
    assert "letter_case" in (tmp_path / "out" / "README.md").read_text()
    task.repair(dataclasses.replace(asked, control="clean"), tmp_path / "control")
    control = Summarization.load(task.context, home / "prepare", tmp_path / "control")
    assert control.answers(shout) == task.answers(shout)


def test_a_normalisation_that_undoes_nothing_is_no_repair(task, tmp_path):
    asked = RepairPlan([SHUFFLED], {"method": "normalise", "normalise": ["letter_case", "spacing"]}, 7)
    with pytest.raises(UsageError, match=r"letter_case, spacing changes none of 50 articles of M2 \(letter_"):
        task.repair(asked, tmp_path)


def test_an_adapter_can_learn_behind_a_normalisation(task, home, tmp_path):
    task.repair(plan(normalise=["letter_case"], steps=4), tmp_path)
    assert load_form(tmp_path).normalise == ("letter_case",)
    loaded = Summarization.load(task.context, home / "prepare", tmp_path)
    shout = str(task.items.table["article"].iloc[0]).upper()
    assert loaded.summarizer.inputs(shout) == task.summarizer.inputs(normaliser(["letter_case"])(shout))
    task.repair(plan(control="clean", normalise=["letter_case"], steps=4), tmp_path / "control")
    assert load_form(tmp_path / "control").normalise == ("letter_case",), "it differs in what it learns from alone"


CLEAN = "Police in Perth said on Monday that two men had left. I'm told Mr Howard met Senator Hill at 4:00pm in Sydney."


@pytest.mark.parametrize(
    ("name", "changed", "undone"),
    [
        ("letter_case", CLEAN.upper(), None),
        ("letter_case", "".join(c.upper() if i % 2 else c.lower() for i, c in enumerate(CLEAN)), None),
        ("letter_case", "CASA AND QANTAS", "CASA AND QANTAS"),  # too short to decide,
("repeated_characters", "Pooolice balloon", "Poolice balloon"),
        ("spelling", "Polixe srrested yhe men in Sydbey tofay", "Polixe arrested the men in Sydbey today"),
        ("spacing", "see example.com,they said", "see example.com, they said"),
    ],
)  # fmt: skip
def test_each_normalisation_undoes_its_change(name, changed, undone):
    found = normaliser([name])(changed)
    if undone is not None:
        assert found == undone
        return
    words, wanted = found.split(), CLEAN.split()
    assert np.mean([a == b for a, b in zip(words, wanted, strict=True)]) >= 0.85 and words[0] == "Police"
    assert "I'm" in words


@pytest.mark.parametrize("name", NORMALISATIONS)
def test_normalisations_leave_clean_articles_alone(name, task):
    undo = normaliser([name])
    for text in (CLEAN, "", "x", *task.items.table["article"]):
        assert undo(text) == text and undo(undo(text.upper())) == undo(text.upper())
