"""Concepts that a model proposes: only those with an effect enter, marked as proposed, and no request is repeated."""

import json
import re
import shutil
from dataclasses import replace
from functools import partial

import numpy as np
import pytest
import yaml

from stages.concepts import Concept
from stages.core.errors import UsageError
from stages.params import AuditConfig, checked
from stages.proposing.proposals import TRIES, Made, ProposedConcept, ProposerConfig, ask_proposer, judged, vocabulary_of
from stages.screening.sweep import sweep
from stages.tasks.account import Account
from tests.endpoints import completion, said, served
from tests.finished import faded
from tests.test_screening import Weighted
from tests.workspace import ROOT, audit_params, make_workspace

USEFUL = {"concept": "glare", "levels": [0, 2, 4, 6], "reason": "the sun is low in winter"}
TONE = {"concept": "tone", "levels": ["plain", "polite", "rude"], "reason": "people are angry"}
USELESS = {"concept": "dust", "levels": [5, 10], "reason": "lenses are dirty"}
UNKNOWN = {"concept": "fogg", "levels": [0, 1], "reason": "typing \x1b[31m"}
TAKEN = {"concept": "tilt", "levels": [0, 9], "reason": "there already"}
BEYOND = {"concept": "glare", "levels": [0, 99], "reason": "twice"}
MALFORMED = {"concept": 3, "levels": []}
TILT, HAZE = Concept("tilt", (0.0, 10.0, 20.0), neutral=0.0), Concept("haze", (0.0, 1.0, 2.0), neutral=0.0)


def answer_of(*proposals):
    return f"Sure:\n```json\n{json.dumps({'proposals': proposals})}\n```"


class Scripted:
    def __init__(self, *answers):
        self.answers = list(answers)

    def __call__(self, request):
        return completion(self.answers.pop(0) if len(self.answers) > 1 else self.answers[0])


def glaring(path, url, **proposer):
    """Make a workspace with an audit of the planted model, and a model that proposes."""
    audit = audit_params(task="planted_concepts:Glaring")
    audit["prepare"] |= {"regions": [], "noise": 0.0}
    workspace = make_workspace(path, {"tiny": audit}, {})
    shutil.copy(ROOT / "tests" / "planted_concepts.py", path)
    block = {"openai": f"{url}/v1", "model": "tiny", "retries": 0, **proposer}
    write_as_people_do(workspace, workspace.params() | {"proposer": block})
    return workspace


def write_as_people_do(workspace, params):
    (workspace.path / "params.yaml").write_text(yaml.safe_dump(params, sort_keys=False, default_flow_style=None))


def record_of(workspace, audit="tiny"):
    return json.loads((workspace.path / ".faded/propose" / f"{audit}.json").read_text())


@pytest.mark.slow
def test_what_has_an_effect_enters_marked_and_nothing_is_asked_twice(tmp_path):
    answers = "I would rather talk.", answer_of(USEFUL, USELESS, UNKNOWN, TAKEN, BEYOND, MALFORMED, TONE)
    with served(Scripted(*answers), whole=True) as model:
        workspace = glaring(tmp_path / "ws", model.url, proposals=8, price={"prompt": 1.0, "completion": 2.0})
        code, told = faded(workspace, "propose", "tiny")
        assert code == 0, told
        assert len(model.requests) == 2
        first, second = (request["messages"][-1]["content"] for request in model.requests)
        assert "- glare: how much glare there is; levels are numbers from 0 to 10, 0 changes nothing" in first
        assert "- tilt" not in first and "label: 1" in first  # a concept of the audit, and an item
        assert "expected a JSON object; it began 'I would rather talk.'" in second
        record, asked = record_of(workspace), (workspace.path / "asked.txt").read_text()
        entered = {one["concept"]: one["enters"] for one in record["outcomes"] if one["enters"]}
        assert entered == {"glare": entered["glare"], "tone": ["rude"]} and len(entered["glare"]) == 4
        verdicts = {(one["concept"], one["reason"]): one["verdict"] for one in record["outcomes"]}
        assert not verdicts["dust", "lenses are dirty"].startswith("effect")
        assert "unknown concept, did you mean 'fog'?" in verdicts["fogg", UNKNOWN["reason"]]
        assert "the audit has this concept" in verdicts["tilt", "there already"]
        assert "proposed before" in verdicts["glare", "twice"] and verdicts["3", ""].startswith("malformed")
        assert record["malformed"] and record["named"] == "tiny-1"
        assert "2 of 7 proposals enter" in told and "1 answer(s) could not be read" in told and "\x1b" not in told
        assert "screening 3 concept(s): 400 unique probes at most" in told and "2 request(s)" in told
        assert len(asked.splitlines()) == record["probes"] <= 400

        before = workspace.params()
        code, told = faded(workspace, "propose", "tiny", "--write")
        assert code == 0, told
        assert len(model.requests) == 2 and (workspace.path / "asked.txt").read_text() == asked
    audit = workspace.params()["audits"]["tiny"]
    had = before["audits"]["tiny"]
    assert audit["concepts"] == had["concepts"] | {"glare": entered["glare"], "tone": ["plain", "rude"]}
    assert audit["proposed"] == {"glare": "tiny", "tone": "tiny"}
    assert audit | {"concepts": 0, "proposed": 0} == had | {"concepts": 0, "proposed": 0}
    assert yaml.safe_load(record["lines"])["audits"]["tiny"]["proposed"] == audit["proposed"]
    assert faded(workspace, "plan", "tiny")[0] == 0


@pytest.mark.slow
def test_a_killed_run_resumes_and_asks_neither_model_twice(tmp_path):
    with served(Scripted(answer_of(USEFUL, USELESS)), whole=True) as model:
        workspace = glaring(tmp_path / "ws", model.url, deterministic=False)
        (workspace.path / "killed").write_text("100")
        killed = workspace.faded("propose", "tiny")
        assert killed.returncode == -9, killed.stdout
        assert not (workspace.path / ".faded/propose/tiny.json").exists()
        (workspace.path / "killed").unlink()
        code, told = faded(workspace, "propose", "tiny")
        assert code == 0, told
        assert len(model.requests) == 1
    assert len((workspace.path / "asked.txt").read_text().splitlines()) == record_of(workspace)["probes"]


@pytest.mark.slow
def test_what_is_wrong_is_told_in_one_message(tmp_path):
    with served(Scripted("No."), whole=True) as model:
        workspace = glaring(tmp_path / "ws", model.url, price={"prompt": 1.0, "completion": 1e6}, max_cost=1.5)
        code, told = faded(workspace, "propose", "tiny")
        assert code == 2 and "proposer.max_cost: 1.5 is reached" in told and len(model.requests) == 2
        params = workspace.params()

        def refused(**changes):
            workspace.write_params(params | changes)
            code, told = faded(workspace, "propose", "tiny")
            assert code == 2, told
            return told

        assert "found no proposer, expected a model that proposes" in refused(proposer=None)
        wrong = {**params["proposer"], "modle": "x"}
        assert "proposer.modle: unknown key, did you mean 'model'?" in refused(proposer=wrong)
        planted = {"tiny": params["audits"]["tiny"] | {"task": "planted:PlantedTask"}}
        assert "audits.tiny.task: PlantedTask has no catalogue of concepts" in refused(audits=planted)
    long = said({"error": {"message": "too long", "code": "context_length_exceeded"}}, 400)
    with served(Scripted(""), lambda number: long, whole=True) as model:
        told = refused(proposer={"openai": f"{model.url}/v1", "model": "tiny", "retries": 0})
        assert len(model.requests) == 1
        assert "or lower proposer.items or proposer.pictures" in told and "prepare" not in told
    assert not (workspace.path / ".faded/propose/tiny.json").exists()


@pytest.mark.parametrize(
    ("text", "why"),
    [
        (answer_of(MALFORMED), "malformed: concept: Input should be a valid string"),
        (answer_of({"concept": "fog\x1b[31m", "levels": [1]}), "expected printable text"),
    ],
)
def test_an_answer_that_cannot_be_read_is_asked_for_again_a_few_times(text, why):
    with served(Scripted(text), whole=True) as model:
        config = checked(ProposerConfig, {"openai": f"{model.url}/v1", "model": "tiny", "retries": 0}, "proposer")
        with pytest.raises(UsageError, match=f"none of {TRIES} answers holds proposals that can be read.*{why}"):
            ask_proposer(config, Account(), "What?")
    assert len(model.requests) == TRIES


def test_texts_become_levels_of_their_own(tmp_path):
    pytest.importorskip("transformers")
    from stages.proposing.proposals import make
    from stages.tasks.chat import Chat
    from tests.test_chat import PREPARE, context, lines, write
    from tests.tiny_models import tiny_causal, tiny_embedder

    inputs = write(tmp_path / "inputs", lines())
    tiny_causal(inputs / "model")
    tiny_embedder(inputs / "embedder")
    concepts = {"typos": [0, 0.3], "system": ["default", "terse"]}
    blocks = {"prepare": PREPARE, "concepts": concepts, "discrepancy": {"validity": -1}}
    audit = AuditConfig.model_validate(audit_params(task="chat", **blocks))
    vocabulary = vocabulary_of(Chat, context(inputs, concepts=concepts), audit)
    told = "\n".join(vocabulary.lines())
    assert "politeness: " in told and "typos: " not in told and "system: the system message; levels are texts" in told
    proposals = [
        ProposedConcept(
            concept="system", levels={"pirate": "Talk like a pirate.", "terse": "Brief.", "copy": "One word."}
        ),
        ProposedConcept(concept="injection", levels={"end": "That is all."}),
        ProposedConcept(concept="injection", levels={"end": "That was all.", "odd name!": "x"}),
        ProposedConcept(concept="letter_case", levels=["upper", "uper"]),
        ProposedConcept(concept="politeness", levels={"rude": "You fool."}),
        ProposedConcept(concept="politeness", levels=["rude"]),
    ]
    draft, made, refused = make(vocabulary, proposals)
    assert draft.concepts == {
        **concepts,
        "system": ["default", "terse", "pirate"],
        "injection": ["none", "end"],
        "politeness": ["neutral", "rude"],
    }
    assert draft.config["systems"] == {"terse": "One word.", "pirate": "Talk like a pirate."}
    assert draft.config["injections"] == {"odd": "Please end here.", "end": "That is all."}
    assert [one.new for one in made] == [["pirate"], ["end"], ["rude"]]
    why = [one.verdict for one in refused]
    assert "expected names of letters" in why[0] and "did you mean 'upper'" in why[1] and "no free texts" in why[2]


def test_a_new_slot_is_put_at_the_end_of_every_template(tmp_path):
    pytest.importorskip("diffusers")
    from stages.core.files import read_table
    from stages.proposing.proposals import make
    from stages.tasks.text_to_image import TextToImage
    from tests.boxes import boxes

    context = boxes(tmp_path / "inputs")
    templates = [f"{one}." for one in context.config["templates"]]
    context = replace(context, config={**context.config, "templates": templates})
    prepared = tmp_path / "prepare"
    prepared.mkdir()
    TextToImage.prepare(context, prepared)
    blocks = {"prepare": dict(context.config), "concepts": dict(context.concepts), "discrepancy": {"threshold": 0.5}}
    audit = AuditConfig.model_validate(audit_params(task="text-to-image", **blocks))
    vocabulary = vocabulary_of(TextToImage, context, audit)
    proposals = [
        ProposedConcept(concept="weather", levels=["", "in rain", "in snow"]),
        ProposedConcept(concept="colour", levels=["red", "pink"]),
        ProposedConcept(concept="colour", levels=["blue"]),
        ProposedConcept(concept="Time of day", levels=["at night"]),
        ProposedConcept(concept="count", levels=[1, 2]),
        ProposedConcept(concept="braces", levels=["in {rain}"]),
    ]
    draft, made, refused = make(vocabulary, proposals)
    assert draft.config["templates"] == [f"{one[:-1]}, {{weather}}." for one in templates]
    assert draft.new == {"weather": ["in rain", "in snow"], "colour": ["pink"]} and len(made) == 2
    assert [one.concept for one in refused] == ["colour", "Time of day", "count", "braces"]
    folder = vocabulary.items(draft, prepared, tmp_path)
    assert set(read_table(folder / "items.parquet")["template"]) <= set(draft.config["templates"])
    task = TextToImage.load(vocabulary.drafted(draft), folder)
    with pytest.raises(UsageError, match="'rain\\.'"):  # too long for the tiny model
        vocabulary.require_fit(task)
    cell = np.array([1, 0, 1])
    assert task.concepts.names == ["colour", "background", "weather"]
    [[order, _]] = task.orders(task.items.ids("discover")[:1], cell[None])
    assert re.fullmatch(r"\w+ red box, in rain\.", order.prompt)


@pytest.mark.slow
def test_what_has_an_effect_enters_and_hardly_anything_else():
    own = {"haze": [0, 1, 2, 3, 4, 5], "tilt": [0, 10, 20, 30, 40]}
    new = {**{f"dull {k}": [0, 1, 2, 3] for k in range(5)}, "tone": ["a", "b", "c"], "glare": [0, 1, 2, 3]}
    weights = {"haze": 0.15, "tilt": 0.014, "glare": 0.2}
    entered = []
    for seed in range(4):
        levels = own | new
        model = partial(Weighted, weights=weights, noise=0.05, seed=seed)
        found = sweep(model, levels, 400, seed=seed, only=new)
        assert [one.name for one in found.concepts] == [*new] and found.probes <= 400
        for one in found.concepts:
            made = Made(ProposedConcept(concept=one.name, levels=new[one.name]), new[one.name][1:])
            entered += [one.name] if judged(made, one).enters else []
    assert entered.count("glare") == 4
    assert len(entered) - 4 <= 4  # of 24


PAGE = (ROOT / "docs" / "choosing-concepts.md").read_text(encoding="utf-8").partition("## Mine texts")[0]
SYSTEMS = {"brief": "Answer in one word.", "pirate": "You are a pirate. Answer as one."}
REASONS = [
    ("letter_case", ["as_is", "upper"], "angry customers write in capitals"),
    ("system", SYSTEMS, "deployments have instructions of their own"),
    ("drop_stop_words", [0, 0.3, 0.6], "people type as into a search engine"),
    ("typos", [0, 0.5], "people type on phones"),
    ("emoji", [0, 1, 2], "younger customers use them"),
]
PROPOSED = {"proposals": [dict(zip(("concept", "levels", "reason"), row, strict=True)) for row in REASONS]}


def customers(request):
    """Answer as the model under test of the example, which fails on capitals and on the system message of a pirate."""
    system, user = (message["content"] for message in request["messages"])
    question = user.partition("Question: ")[2]
    return completion("Arr." if "pirate" in system or question.split("\n")[0].isupper() else "It is known.")


@pytest.mark.slow
def test_the_example_of_the_page(tmp_path):
    pytest.importorskip("transformers")
    pytest.importorskip("textblob")
    from tests.planted_words import questions
    from tests.tiny_models import tiny_embedder

    block = yaml.safe_load(re.search(r"```yaml\n(.*?)```", PAGE, re.DOTALL)[1])
    audit, proposer = block["audits"]["support"], block["proposer"]
    with served(customers, whole=True) as under_test, served(Scripted(json.dumps(PROPOSED)), whole=True) as model:
        audit["prepare"] |= {"embedder": {"transformers": "embedder"}}
        audit["prepare"]["model"] |= {"openai": f"{under_test.url}/v1"}
        audit["discrepancy"] |= {"validity": -1}  # the tiny encoder finds no texts similar
        del proposer["key_env"]  # a key must not be sent over plain http
        workspace = make_workspace(tmp_path / "ws", {"support": audit}, {})
        write_as_people_do(workspace, workspace.params() | {"proposer": {**proposer, "openai": f"{model.url}/v1"}})
        inputs = workspace.path / "data/support/inputs"
        tiny_embedder(inputs / "embedder")
        lines = [{"id": f"q{n}", "question": text, "answers": ["known"]} for n, text in enumerate(questions(60, 7))]
        (inputs / "questions.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
        code, told = faded(workspace, "propose", "support", "--write")
        assert code == 0, told
    shown = [text.strip() for text in re.findall(r"```text\n(.*?)```", PAGE, re.DOTALL)]
    for part in shown:
        assert " ".join(part.split()) in " ".join(told.split()), told
    written = workspace.params()["audits"]["support"]
    assert written["concepts"]["letter_case"] == ["as_is", "upper"]
    assert written["concepts"]["system"] == ["default", "pirate"] and "pirate" in written["prepare"]["systems"]
    assert written["proposed"] == {"letter_case": proposer["model"], "system": proposer["model"]}
