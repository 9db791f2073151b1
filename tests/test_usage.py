"""`faded usage`: what is in force, how common levels are in production inputs, and what it writes."""

import json
from dataclasses import replace
from types import SimpleNamespace
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch
import yaml
from PIL import Image

from flows.workspace.edit_params import with_usage
from stages.concepts import Concept, ConceptSpace
from stages.concepts.catalogue import span
from stages.concepts.images import ImageTransforms, image_space, probe_chance
from stages.concepts.prompts import fill, prompt_space
from stages.concepts.rows import CATALOGUE, RowChanges
from stages.concepts.texts import TextTransforms, text_space
from stages.concepts.usage import Usage
from stages.core.errors import UsageError
from stages.landscape.compare import PairedAnswers
from stages.landscape.rates import rate_in_use
from stages.params.usage import MeasuredConfig
from stages.tasks.chat.choosing import QuestionReader
from stages.tasks.tabular.init import RowReader
from stages.tasks.text_to_image.init import PromptReader
from stages.usage import measures
from stages.usage.estimate import DRAWS, Shares, estimate_usage, spread_usage
from stages.usage.measures import read_texts
from tests.finished import faded, quick_audit, run_stages
from tests.images import draw, write_images
from tests.news import articles
from tests.workspace import make_workspace


def drawn(space: ConceptSpace, truth: dict[str, list[float]], n: int, rng: np.random.Generator) -> np.ndarray:
    """Cells of production inputs: exactly these shares of each level, other concepts unchanged, (n, d)."""
    cells = np.tile(space.start, (n, 1))
    for name, shares in truth.items():
        ends = np.round(np.cumsum(shares) * n).astype(int)
        cells[:, space.names.index(name)] = rng.permutation(np.searchsorted(ends, np.arange(n), side="right"))
    return cells


def compare(found: list[Shares], truth: dict[str, list[float]]) -> None:
    """Whether the shares that are true lie within the intervals, and these say something."""
    assert {one.concept for one in found} == set(truth)
    for one in found:
        expected = np.array(truth[one.concept])
        assert (one.low - 1e-9 <= expected).all(), one
        assert (expected <= one.high + 1e-9).all(), one
        assert (one.high - one.low).max() < 0.3, one
        assert one.smoothed.min() > 0


def test_shares_of_darker_blurred_and_noisy_digits_are_found():
    from sklearn.datasets import load_digits

    pictures = torch.tensor(load_digits().images, dtype=torch.float32)[:, None] / 16
    pictures = torch.nn.functional.interpolate(pictures, size=(16, 16), mode="bilinear")
    levels = {"rotation": [0, 20], "darkening": [0, 0.3, 0.6], "blur": [0, 0.8, 1.5], "noise": [0, 0.05, 0.15]}
    space = image_space(levels)
    transforms = ImageTransforms(space)

    def measured(items: np.ndarray, cells: np.ndarray, seed: int) -> np.ndarray:
        chance = probe_chance(items.astype(np.uint64), space.flat(cells), np.zeros(len(items)), seed)
        return measures.of_pictures(transforms(pictures[items], cells, chance)).to_numpy()

    rng = np.random.default_rng(0)
    truth = {"darkening": [0.7, 0.2, 0.1], "blur": [0.85, 0.1, 0.05], "noise": [0.6, 0.4, 0.0]}
    items, cells = rng.integers(0, 900, DRAWS), spread_usage(space).sample(DRAWS, rng)
    names = measures.of_pictures(pictures[:1]).columns
    columns = {name: [names.get_loc(by) for by in measures.PICTURES[name]] for name in truth}
    production = measured(rng.integers(900, len(pictures), 800), drawn(space, truth, 800, rng), 2)
    own = measured(items, cells, 1)
    compare(estimate_usage(space, cells, [str(item) for item in items], own, production, columns, 5), truth)


@pytest.mark.slow
def test_intervals_contain_the_truth_about_as_often_as_they_say():
    """Simulated readings: three levels, of which neighbours are confused, and production drawn at random."""
    space = image_space({"darkening": [0, 0.3, 0.6], "noise": [0, 0.1]})
    truth, hits = np.array([0.75, 0.15, 0.1]), []
    for seed in range(40):
        rng = np.random.default_rng(seed)
        cells = spread_usage(space).sample(1500, rng)
        base = rng.normal(0, 0.5, 100)  # items differ
        item = rng.integers(0, 100, 1500)

        def seen(levels: np.ndarray, of: np.ndarray, rng: np.random.Generator = rng) -> np.ndarray:
            return np.stack([levels + of + rng.normal(0, 0.2, len(levels)), rng.random(len(levels))], axis=1)

        levels = rng.choice(3, 300, p=truth)
        own, found = seen(cells[:, 0], base[item]), seen(levels, rng.normal(0, 0.5, 300))
        [one] = estimate_usage(space, cells, item.astype(str), own, found, {"darkening": [0]}, seed)
        hits.append((one.low <= truth) & (truth <= one.high))
    assert 0.88 <= np.mean(hits) <= 1.0


class Articles:
    """What a task shows of its texts, without a model."""

    def __init__(self, levels: dict[str, list[Any]], texts: list[str], **column: str) -> None:
        self.concepts, self.texts = text_space(levels), dict(zip(map(str, range(len(texts))), texts, strict=True))
        self.items = SimpleNamespace(table=pd.DataFrame({"id": list(self.texts), "question": texts}))
        self.context = SimpleNamespace(config={})
        self.transforms = TextTransforms(self.concepts, 3)

    def written(self, ids: list[str], cells: np.ndarray) -> list[str]:
        return [self.transforms(self.texts[i], i, cell) for i, cell in zip(ids, cells, strict=True)]


def test_shares_of_capitals_and_typos_are_found_in_a_file_of_texts(tmp_path, monkeypatch):
    monkeypatch.setattr(measures, "DRAWS", 1500)
    levels = {"typos": [0, 0.1, 0.3], "letter_case": ["as_is", "lower", "upper"], "word_order": [0, 3]}
    task = Articles(levels, articles(80))
    truth = {"typos": [0.7, 0.2, 0.1], "letter_case": [0.8, 0.05, 0.15]}
    others = Articles(levels, articles(300, seed=1))
    said = others.written(list(others.texts), drawn(task.concepts, truth, 300, np.random.default_rng(1)))
    (tmp_path / "asked.jsonl").write_text("".join(json.dumps({"id": 1, "question": text}) + "\n" for text in said))
    found, inputs = QuestionReader(task, None).estimate(tmp_path / "asked.jsonl", 0)
    assert inputs == 300
    compare(found, truth)


class Painter:
    """What a task shows of its prompts, without a model."""

    def __init__(self, slots: dict[str, list[str]], templates: list[str]) -> None:
        self.concepts, self.templates = prompt_space(slots), templates
        ids = [str(n) for n in range(len(templates))]
        self.items = SimpleNamespace(table=pd.DataFrame({"id": ids}))
        self.context = SimpleNamespace(config={})

    def orders(self, ids: list[str], cells: np.ndarray) -> list[list[Any]]:
        names = self.concepts.names
        concepts = self.concepts.concepts
        words = [{n: str(c.levels[k]) for n, c, k in zip(names, concepts, cell, strict=True)} for cell in cells]
        prompts = [fill(self.templates[int(i)], said) for i, said in zip(ids, words, strict=True)]
        return [[SimpleNamespace(prompt=prompt)] for prompt in prompts]


def test_shares_of_the_words_of_prompts_are_found(tmp_path):
    slots = {"colour": ["", "red", "blue"], "digit": ["seven", "three"], "place": ["", "on a red ground"]}
    forms = ["{} {{colour}} {{digit}} {{place}}", "{}, {{digit}} in {{colour}}, {{place}}"]
    own = [form.format(word) for word in ("a photo of a", "a drawing of a", "the") for form in forms]
    painter, other = Painter(slots, own), Painter(slots, [form.format("my picture of a") for form in forms])
    truth = {"colour": [0.6, 0.3, 0.1], "digit": [0.9, 0.1], "place": [0.8, 0.2]}
    rng = np.random.default_rng(2)
    cells = drawn(painter.concepts, truth, 400, rng)
    said = [orders[0].prompt for orders in other.orders(rng.choice(["0", "1"], 400).tolist(), cells)]
    (tmp_path / "prompts.txt").write_text("\n".join([*said, *["a horse"] * 40]) + "\n")
    found, _ = PromptReader(painter, None).estimate(tmp_path / "prompts.txt", 0)
    digit = next(one for one in found if one.concept == "digit")
    assert digit.unlike == 40, "a horse is not one of the digits"
    digits = [one for one in found if one.concept == "digit"]
    compare(digits, {"digit": truth["digit"]})
    place = next(one for one in found if one.concept == "place")
    assert place.shares[1] == pytest.approx(0.2 * 400 / 440, abs=0.05), "prompts that say nothing of it count as such"


def test_shares_of_drift_and_missing_values_are_found_in_a_table(tmp_path):
    rng = np.random.default_rng(3)
    names = [f"m{k}" for k in range(12)]
    rows = pd.DataFrame(rng.normal(5, 2, (400, 12)), columns=names)
    space = span({"drift": [0, 1, 3], "missing": [0, 0.4], "rounding": [0, 1]}, CATALOGUE)
    usual, deviation = rows.median().to_numpy(), rows.std().to_numpy()
    changes = RowChanges(space, CATALOGUE, dict.fromkeys(names, "measurement"), deviation, usual)

    def changed(ids: list[str], cells: np.ndarray) -> tuple[Any, pd.DataFrame]:
        chance = rng.integers(0, 2**63, len(cells)).astype(np.uint64)
        return None, pd.DataFrame(changes(rows.iloc[[int(i) for i in ids]].to_numpy(), cells, chance), columns=names)

    table = pd.DataFrame({"id": [str(i) for i in range(400)], "split": "discover"})
    parts = {"table": SimpleNamespace(measured=names), "items": SimpleNamespace(table=table)}
    task = SimpleNamespace(concepts=space, rows=rows, changed=changed, **parts)
    truth = {"drift": [0.8, 0.15, 0.05], "missing": [0.7, 0.3]}
    others = rng.normal(5, 2, (500, 12))
    cells = drawn(space, truth, 500, rng)
    sent = changes(others, cells, rng.integers(0, 2**63, 500).astype(np.uint64))
    sent = np.where(sent == usual, np.nan, sent)  # in production a missing value is missing
    pd.DataFrame(sent, columns=names).assign(who="x").to_csv(tmp_path / "rows.csv", index=False)
    found, inputs = RowReader(task, None).estimate(tmp_path / "rows.csv", 0)
    assert inputs == 500
    compare(found, truth)


def test_what_is_wrong_with_a_file_is_told(tmp_path):
    for name, content, column, told in (
        ("a.doc", "x", None, r"a\.doc: expected a file that ends in \.txt, \.csv"),
        ("a.csv", "prompt,b\n1,2\n", "promt", r"no column 'promt'.*prompt.*; found prompt, b"),
        ("a.jsonl", '{"text": "x"}\n3\n', None, "expected objects or texts, all of one kind"),
    ):
        (tmp_path / name).write_text(content)
        with pytest.raises(UsageError, match=told):
            read_texts(tmp_path / name, column, ["text"], [])


@pytest.fixture(scope="module")
def stripes(tmp_path_factory):
    prepare = {
        "model": {"train": "small_cnn", "epochs": 1, "batch_size": 32},
        "data": {"parquet": "images.parquet"},
        "items": {"discover": 60, "repair": 150, "test": 150},
    }
    concepts = {"rotation": [0, 30], "darkening": [0, 0.4, 0.8], "noise": [0, 0.2]}
    usage = {"changes": [2, 1], "levels": {"rotation": {0: 9, 30: 1}}}
    blocks = {"prepare": prepare, "concepts": concepts, "usage": usage, "discrepancy": {}}
    audit = quick_audit(task="image-classification", **blocks)
    workspace = make_workspace(tmp_path_factory.mktemp("usage") / "ws", {"stripes": audit, "tiny": quick_audit()}, {})
    write_images(workspace.path / "data/stripes/inputs/images.parquet")
    run_stages(workspace, "stripes", ["prepare"])
    return workspace


def test_measured_shares_are_printed_and_written(stripes, monkeypatch):
    monkeypatch.setattr(measures, "DRAWS", 1500)
    params = stripes.path / "params.yaml"
    before = params.read_text()
    folder = stripes.path.parent / "inbox"
    folder.mkdir()
    rng = np.random.default_rng(5)
    for n in range(60):
        dark = 0.2 if n % 3 == 0 else 1.0  # a third is darkened by 0.8
        Image.fromarray((draw(n % 3, rng) * dark).astype(np.uint8)).save(folder / f"{n}.png")
    (folder / "broken.png").write_bytes(b"no picture")
    code, said = faded(stripes, "usage", "stripes", "--from", folder)
    assert code == 0, said
    assert "60 inputs of inbox" in said and "left out: 1, the first: broken.png is not a readable image" in said
    assert "no measure, so these keep what is stated or assumed: rotation" in said
    assert params.read_text() == before, "nothing is written without --write"
    code, said = faded(stripes, "usage", "stripes", "--from", folder, "--write")
    assert code == 0, said
    usage = yaml.safe_load(params.read_text())["audits"]["stripes"]["usage"]
    measured = usage["measured"]
    assert measured["inputs"] == 60 and measured["source"] == "inbox"
    assert set(measured["worth"]) <= set(usage["levels"]) - {"rotation"} and 20 < measured["worth"]["darkening"] <= 60
    assert usage["levels"]["rotation"] == {0: 9, 30: 1}
    assert usage["levels"]["darkening"][0.8] == pytest.approx(1 / 3, abs=0.03) and "changes" not in usage
    code, said = faded(stripes, "usage", "stripes")
    assert code == 0, said
    assert "measured on 60 inputs, inbox" in said


@pytest.mark.parametrize(
    ("arguments", "told"),
    [
        (["stripes", "--write"], "--write needs --from PATH"),
        (["stripes", "--from", "nowhere"], "there is no such file or folder"),
        (["stripes", "--from", "params.yaml"], "is not a folder, expected a folder of pictures"),
        (["tiny", "--from", "params.yaml"], "nothing is known of the inputs of PlantedTask; state their usage"),
    ],
)
def test_what_cannot_be_measured_is_told(stripes, arguments, told):
    code, said = faded(stripes, "usage", *arguments)
    assert code == 2, said
    assert told in " ".join(said.split())


GRID = ConceptSpace([Concept("darkening", (0, 1, 2), neutral=0), Concept("blur", (0, 1), neutral=0)])
CELLS = np.array([(dark, blur) for dark in range(3) for blur in range(2)])
FAILS = np.array([0.0, 0.25, 0.25, 0.5, 0.75, 1.0])  # of four items, in each cell
COMMON = np.array([0.8, 0.15, 0.05])  # levels of darkening


def of_darkening(shares: np.ndarray, inputs: int | None) -> ConceptSpace:
    levels = {0: shares, 1: np.array([0.9, 0.1])}
    known = {0: inputs} if inputs else {}
    return replace(GRID, usage=Usage.of(GRID.sizes, GRID.neutral_levels, None, levels, (), known))


def test_intervals_in_use_hold_what_a_usage_measured_on_few_inputs_may_be_off():
    every = pd.DataFrame(np.repeat(CELLS, 400, axis=0), columns=GRID.names)
    every["item"] = [f"i{k}" for k in range(400)] * len(CELLS)
    failed = np.concatenate([(np.arange(400) * 7 + cell * 67) % 400 < 400 * rate for cell, rate in enumerate(FAILS)])
    items, after = every["item"].to_numpy(dtype=str), np.zeros(len(every), dtype=bool)
    truth, rng = float(of_darkening(COMMON, None).density(CELLS) @ FAILS), np.random.default_rng(4)
    held, without = 0, 0
    for _ in range(50):
        shares = rng.multinomial(150, COMMON) + 0.5
        space = of_darkening(shares / shares.sum(), 150)
        found = rate_in_use(space, failed, every).rate  # of many items all pairs were probed: little other error
        held += found.low <= truth <= found.high
        known = rate_in_use(of_darkening(space.usage.weights[0], None), failed, every).rate
        without += known.low <= truth <= known.high
        assert known.value == pytest.approx(found.value)
    assert 0.9 <= held / 50 <= 0.99 and without < 35
    pairs = {"before": failed, "after": after}
    given = (items, every[GRID.names].to_numpy(), after, 0.0, pairs)
    usages = (of_darkening(COMMON, inputs).usage for inputs in (None, 20))
    widths = [PairedAnswers(*given, usage=usage, resamples=400, seed=0).change() for usage in usages]
    assert widths[0].value == widths[1].value and widths[1].low < widths[0].low


TEXT = """audits:
  one:
    seed: 1   # said of it
    usage:
      changes: [1, 1]   # guessed
      # of the camera
      levels:
        noise: {0: 1, 0.1: 1}   # measured at night
        fog: {0: 9, 1: 1}
  two:
    usage: uniform
  three: {seed: 1}
"""


def test_only_usage_is_written_and_comments_stay():
    levels = {"noise": {0.0: 0.875, 0.1: 0.125}}
    measured = MeasuredConfig(inputs=900, source="inbox", worth={"noise": 700})
    about = measured.model_dump()
    one = with_usage(TEXT, "one", levels, measured)
    assert "# of the camera" in one
    assert one.replace("noise: {0: 0.875, 0.1: 0.125}", "") != one
    loaded = yaml.safe_load(one)["audits"]
    assert loaded.pop("one")["usage"] == {"levels": {**levels, "fog": {0: 9, 1: 1}}, "measured": about}
    assert loaded == {name: block for name, block in yaml.safe_load(TEXT)["audits"].items() if name != "one"}
    for name in ("two", "three"):
        usage = yaml.safe_load(with_usage(TEXT, name, levels, measured))["audits"][name]["usage"]
        assert usage == {"levels": {"noise": {0: 0.875, 0.1: 0.125}}, "measured": about}
