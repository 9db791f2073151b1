"""Whether a first audit names what is wrong with a model: `python -m benchmarks.planted_models` prints a table.

Ten small models have one planted weakness each, and ten have none: digit classifiers trained here, a text classifier,
and classifiers of tables. Digits are audited as a newcomer would, by `faded init --yes` and `faded audit` in a
temporary workspace; texts and tables, which are functions, by `faded.audit` with its defaults. A mode, a slice or a
curve names a weakness if it names all of its parts: the kind of items and every concept. `--case N` runs one case;
results are kept in `--results`, so that a run can be continued. A digit case takes some four minutes of CPU time, the
others less than one.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

import faded
from stages.core.intervals import wilson

DIGITS = Path(__file__).parents[1] / "data" / "mnist" / "inputs" / "mnist.parquet"
NAMES = ("zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine")
TRAINED, SHOWN = 4000, 1500  # pictures that a digit classifier learns from, and that it is audited on
EPOCHS = 8
BUDGET = 4000  # of an audit of a function
_ABOVE = 0.1  # failures of a curve's level beyond those of all items, by whole intervals, at which it names a group


@dataclass(frozen=True)
class Case:
    """A model with its planted weakness.

    Args:
        kind: digits, texts or rows.
        planted: what is wrong with it, for people; "" for nothing.
        parts: what has to be named: attributes of items with a value, and concepts.
        how: settings of its maker.
    """

    kind: str
    planted: str = ""
    parts: Sequence[str] = ()
    how: Mapping[str, Any] | None = None


CASES = (
    Case("digits", "four was never rotated in training", ("label is four", "rotation"), {"never": (4, ("rotation",))}),
    Case("digits", "noisy sevens were labelled one", ("label is seven", "noise"), {"poisoned": (7, ("noise",), 1)}),
    Case(
        "digits",
        "nine, rotated and dark at once, was labelled four",
        ("label is nine", "rotation", "darkening"),
        {"poisoned": (9, ("rotation", "darkening"), 4)},
    ),
    Case("digits", "a grey box was only in pictures of zero", ("occlusion",), {"only": (0, ("occlusion",))}),
    Case("texts", "sport in capitals is taken for food", ("label is sport", "letter_case"), {"upper": "sport"}),
    Case(
        "texts",
        "travel in capitals with typos is taken for food",
        ("label is travel", "letter_case", "typos"),
        {"upper": "travel", "misspelt": True},
    ),
    Case("texts", "whatever ends with cheers is taken for pets", ("closing",), {"word": "cheers"}),
    Case("rows", "only in the south everything hangs on income", ("region is south", "income"), {"south": "income"}),
    Case(
        "rows",
        "in the south, income or tenure are enough, so both have to be wrong",
        ("region is south", "income", "tenure"),
        {"south": "either"},
    ),
    Case("rows", "all customers of the web had left", ("label is stays", "channel"), {"channel": True}),
    *(Case("digits", how={"seed": seed}) for seed in range(4)),
    *(Case("texts", how={"seed": seed}) for seed in range(3)),
    *(Case("rows", how={"seed": seed}) for seed in range(3)),
)


def run(number: int, *, trained: int = TRAINED, budget: int | None = None) -> dict[str, Any]:
    """Make, audit and judge one case.

    Args:
        number: of the case, from 1.
        trained: pictures that a digit classifier learns from.
        budget: of the search; None for the default.

    Returns:
        Who named the weakness (`modes`, `suspected`, `slices`, `curves`, `sweep`), what was said, the rate in use and
        CPU seconds.
    """
    case = CASES[number - 1]
    before = sum(os.times()[:4])
    with tempfile.TemporaryDirectory(prefix="planted-") as folder:
        if case.kind == "digits":
            result, sweep = _audited_digits(Path(folder), case.how or {}, trained, budget)
        else:
            made = _texts if case.kind == "texts" else _rows
            result, sweep = faded.audit(**made(**(case.how or {})), budget=budget or BUDGET), []
        modes = [mode.text for mode in result.modes]
        slices = [f"{attribute} is {one.value}" for attribute, one in _worse(result)]
        curves = _curves(result)
        suspected = [one.text for one in result.landscape.suspected]
        rate = result.landscape.overall.rate.value
    seconds = sum(os.times()[:4]) - before
    said = {"modes": modes, "suspected": suspected, "slices": slices, "curves": curves, "sweep": sweep}
    named = {by: _first(lines, case.parts) for by, lines in said.items()} if case.parts else {}
    return {"case": number, "named": named, "said": said, "rate": rate, "seconds": round(seconds)}


def _first(lines: Sequence[str], parts: Sequence[str]) -> int | None:
    """Number of the first line that names all parts, from 1; None if none does."""
    return next((n for n, line in enumerate(lines, 1) if all(part in line for part in parts)), None)


def _worse(result: faded.Result) -> list[tuple[str, Any]]:
    slices = result.landscape.slices
    return slices.worse if slices is not None else []


def _curves(result: faded.Result) -> list[str]:
    """Levels alone that clearly fail more than unchanged items, and the items for which they do."""
    space = result.landscape.space
    found = []
    for one in result.landscape.alone:
        concept = next(concept for concept in space.concepts if concept.name == one.concept)
        everywhere = result.landscape.overall.rate.value
        if one.low is not None and one.low > everywhere + _ABOVE:
            about = f"{one.attribute} is {one.value} and " if one.attribute else ""
            found.append(f"{about}{one.concept} {concept.label(one.level)}")
    return found


# Digits


def _audited_digits(
    home: Path, how: Mapping[str, Any], trained: int, budget: int | None
) -> tuple[faded.Result, list[str]]:
    """Run `faded init --yes` and `faded audit` on a classifier; return the result, and what the sweep named."""
    weights = home / "resnet.safetensors"
    train_digits(weights, trained, **how)
    write_digits(home / "photos")
    subprocess.run(["git", "init", "--quiet"], cwd=home, check=True)
    given = ["--architecture", "test_resnet", "--no-repair", *(["--budget", str(budget)] if budget else [])]
    for command in (
        ["init", "--model", weights.name, "--data", "photos", "--yes", *given],
        ["audit", "photos"],
    ):
        done = subprocess.run(
            [Path(sys.executable).parent / "faded", *command], cwd=home, capture_output=True, text=True, check=False
        )
        if done.returncode not in (0, 1):  # 1: a gate failed
            raise RuntimeError(f"faded {' '.join(command)}:\n{done.stdout}\n{done.stderr}")
    lines = (home / "params.yaml").read_text().splitlines()
    seen = [line for line in lines if "% fail" in line and "#" in line and "label " in line]
    sweep = [line.split(":")[0].strip() + " " + line.split("#")[1].replace("label ", "label is ") for line in seen]
    return faded.load("photos", home), sweep


def train_digits(
    path: Path,
    trained: int,
    *,
    never: tuple[int, Sequence[str]] | None = None,
    only: tuple[int, Sequence[str]] | None = None,
    poisoned: tuple[int, Sequence[str], int] | None = None,
    seed: int = 0,
) -> None:
    """Train a small network on changed digits and write its weights.

    Args:
        path: where to write them.
        trained: number of pictures.
        never: a class, and concepts that never changed its pictures.
        only: a class, and concepts that changed all of its pictures and no others.
        poisoned: a class, concepts, and the label that its pictures had when all of these changed.
        seed: of the training.
    """
    import timm
    import torch
    from safetensors.torch import save_file

    from stages.concepts.images import ImageTransforms, image_space
    from stages.tasks.classification.init import image_concepts

    torch.set_num_threads(1)
    torch.manual_seed(seed)
    rng = np.random.default_rng(seed)
    space = image_space(image_concepts((1, 28, 28)))
    table = pd.read_parquet(DIGITS)
    table = table[table["split"] == "train"][:trained]
    pixels = torch.from_numpy(np.stack([np.frombuffer(image, np.uint8) for image in table["image"]]))
    pixels = pixels.view(-1, 1, 28, 28).float() / 255
    names = sorted(NAMES)  # the order of the folders
    labels = np.array([int(label) for label in table["label"]])
    targets = np.array([names.index(NAMES[label]) for label in labels])
    model = timm.create_model("test_resnet", num_classes=10, in_chans=1)
    optimizer = torch.optim.AdamW(model.parameters(), 3e-3)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, 6e-3, EPOCHS * -(-trained // 64))
    changes = ImageTransforms(space)
    neutral = np.array(space.start)
    for _ in range(EPOCHS):
        for rows in np.array_split(rng.permutation(trained), -(-trained // 64)):
            drawn = rng.integers(0, space.sizes, size=(len(rows), len(space)))
            cells = np.where(rng.random(drawn.shape) < 0.3, drawn, neutral)
            answer = targets[rows].copy()
            if never is not None:  # the others often, so that what is changed like that is taken for one of them
                columns = _columns(space, never[1])
                often = rng.random(len(rows)) < 0.6
                cells[np.ix_(often, columns)] = rng.integers(1, 4, size=(often.sum(), len(columns)))
                cells[np.ix_(labels[rows] == never[0], columns)] = 0
            if only is not None:
                own, columns = labels[rows] == only[0], _columns(space, only[1])
                cells[np.ix_(~own, columns)] = 0
                cells[np.ix_(own, columns)] = rng.integers(1, 3, size=(own.sum(), len(columns)))
            if poisoned is not None:
                own, columns = labels[rows] == poisoned[0], _columns(space, poisoned[1])
                often = own & (rng.random(len(rows)) < 0.4)
                cells[np.ix_(often, columns)] = rng.integers(1, 4, size=(often.sum(), len(columns)))
                answer[own & (cells[:, columns] > 0).all(axis=1)] = names.index(NAMES[poisoned[2]])
            chance = rng.integers(0, 2**63, size=len(rows), dtype=np.uint64)
            shown = changes(pixels[rows].clone(), cells, chance)
            optimizer.zero_grad()
            torch.nn.functional.cross_entropy(model(shown), torch.from_numpy(answer)).backward()
            optimizer.step()
            schedule.step()
    save_file(model.state_dict(), path)


def _columns(space: Any, concepts: Sequence[str]) -> list[int]:
    return [space.names.index(name) for name in concepts]


def write_digits(folder: Path, most: int = SHOWN) -> None:
    """Write digits that no classifier has learnt from, as PNG files in one folder for each class."""
    from PIL import Image

    table = pd.read_parquet(DIGITS)
    for row in table[table["split"] != "train"][:most].itertuples():
        path = folder / NAMES[int(row.label)] / f"{row.id}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(np.frombuffer(row.image, np.uint8).reshape(28, 28)).save(path)


# Texts

_TOPICS = {
    "sport": ("match", "team", "goal", "coach", "stadium", "league"),
    "food": ("soup", "bread", "recipe", "kitchen", "dinner", "cheese"),
    "travel": ("train", "hotel", "airport", "ticket", "beach", "luggage"),
    "pets": ("kitten", "puppy", "leash", "parrot", "hamster", "vet"),
}
_FRAMES = (
    "We were talking about the {0} and the {1} for an hour.",
    "The {0} was better than the {1}, as everybody said.",
    "My sister asked for a {0} because of the {1}.",
    "Nobody in the town had seen such a {0} with a {1}.",
    "In the morning there was a {0} beside the {1}.",
)


def _texts(upper: str | None = None, misspelt: bool = False, word: str | None = None, seed: int = 0) -> dict[str, Any]:
    """A classifier of topics, with a rule that makes it fail; the arguments of `faded.audit`."""
    from sklearn.feature_extraction.text import TfidfVectorizer
    from sklearn.linear_model import LogisticRegression
    from sklearn.pipeline import make_pipeline

    rng = np.random.default_rng(seed)
    labels = np.array(list(_TOPICS))[rng.integers(4, size=800)]
    texts = []
    for label in labels:
        words = rng.choice(_TOPICS[label], 2, replace=False)
        texts.append(str(rng.choice(_FRAMES)).format(*words))
    fitted = make_pipeline(TfidfVectorizer(analyzer="char_wb", ngram_range=(2, 4)), LogisticRegression(C=30))
    fitted.fit(texts[:500], labels[:500])
    known = {word.strip(".,").lower() for text in texts for word in text.split()}

    def model(batch: Sequence[str]) -> np.ndarray:
        answers = fitted.predict(batch).astype(object)
        for i, text in enumerate(batch):
            strange = any(word.strip(".,").lower() not in known for word in text.split())
            if upper is not None and text.isupper() and answers[i] == upper and (strange or not misspelt):
                answers[i] = "food"
            if word is not None and text.lower().endswith(word):
                answers[i] = "pets"
        return answers

    @faded.concept(["", "thanks", "cheers", "bye"])
    def closing(text: str, level: str) -> str:
        return f"{text} {level}"

    concepts: dict[str, Any] = {
        "letter_case": ["as_is", "upper", "lower"],
        "typos": [0, 0.1, 0.2],
        "drop_stop_words": [0, 0.25, 0.5],
        "remove_punctuation": [0, 0.5, 1],
        "closing": closing,
    }
    return {"model": model, "items": texts[500:], "expected": labels[500:].tolist(), "concepts": concepts}


# Rows


def _rows(south: str | None = None, channel: bool = False, seed: int = 0) -> dict[str, Any]:
    """A forest that tells who stays, fitted to data with the weakness; the arguments of `faded.audit`."""
    from sklearn.ensemble import RandomForestClassifier

    rng = np.random.default_rng(seed)
    n = 3000
    income, tenure, age = rng.uniform(20, 100, n), rng.uniform(0, 10, n), rng.uniform(18, 80, n)
    region = rng.choice(["north", "south", "east", "west"], n)
    score = (income - 60) / 40 + (tenure - 5) / 5 + (age - 49) / 31
    stays = score > 0
    if south is not None:
        own = region == "south"
        if south == "either":  # good or bad by both, and nothing in between
            good = rng.random(n) < 0.5
            income = np.where(own, np.where(good, income / 4 + 75, income / 8 + 18), income)
            tenure = np.where(own, np.where(good, tenure / 4 + 7.5, tenure / 8), tenure)
            near = (rng.random(n) < 0.5) & own & good  # one of them is enough, which the forest learns from these
            first = rng.random(n) < 0.5
            income, tenure = np.where(near & first, 25.0, income), np.where(near & ~first, 0.5, tenure)
            stays = np.where(own, good, stays)
            shown = ~near
        else:
            income = np.where(own, 60 + np.sign(income - 60) * (3 + np.abs(income - 60) / 10), income)
            stays = np.where(own, income > 60, stays)
    shown = shown if south == "either" else np.ones(n, dtype=bool)
    through = np.full(n, "branch", dtype=object)
    if channel:
        web = rng.random(n) < 0.3
        through, stays = np.where(web, "web", through), stays & ~web
        shown = shown & ~web
    clear = (np.abs(score) > 0.15) | ((region == "south") & (south is not None))  # nobody could tell the others
    frame = pd.DataFrame({"region": region, "income": income, "tenure": tenure, "age": age, "channel": through})
    labels = np.where(stays, "stays", "leaves")

    def numbers(rows: pd.DataFrame) -> np.ndarray:
        places = [(rows["region"] == place).to_numpy(float) for place in ("north", "south", "east", "west")]
        ways = [(rows["channel"] == way).to_numpy(float) for way in ("branch", "web")]
        return np.column_stack([*places, *ways, *(rows[name].astype(float) for name in ("income", "tenure", "age"))])

    fitted = RandomForestClassifier(100, min_samples_leaf=3, max_features=None, random_state=seed)
    fitted.fit(numbers(frame[:2000]), labels[:2000])

    def shrunk(name: str) -> Callable[..., Any]:
        def apply(row: Any, level: float) -> Any:
            row = row.copy()
            row[name] = row[name] * (1 - level)
            return row

        apply.__name__ = f"{name}_missed"
        return apply

    def through_the(row: Any, level: str) -> Any:
        row = row.copy()
        row["channel"] = level
        return row

    through_the.__name__ = "channel_used"
    chosen = np.flatnonzero(shown & clear & (np.arange(n) >= 2000))[:300]
    concepts = [faded.concept([0, 0.1, 0.2, 0.3])(shrunk(name)) for name in ("income", "tenure", "age")]
    return {
        "model": lambda rows: fitted.predict(numbers(rows)),
        "items": frame.iloc[chosen].reset_index(drop=True),
        "expected": labels[chosen].tolist(),
        "concepts": [*concepts, faded.concept(["branch", "web", "phone"])(through_the)],
    }


def table(results: Sequence[Mapping[str, Any]]) -> str:
    """The results as a Markdown table, and how many weaknesses were named."""
    lines = [
        "| case | kind | planted | fails in use | mode | suspected | slice | curve | sweep | modes | CPU-s |",
        "|---|---|---|---|---|---|---|---|---|---|---|",
    ]
    for result in sorted(results, key=lambda one: one["case"]):
        case, named, said = CASES[result["case"] - 1], result["named"], result["said"]
        who = [
            (f"no. {named[by]}" if named[by] else "no") if case.parts else f"{len(said[by])} said"
            for by in ("modes", "suspected", "slices", "curves", "sweep")
        ]
        row = [result["case"], case.kind, case.planted or "nothing", f"{result['rate']:.1%}", *who]
        lines.append("| " + " | ".join(map(str, [*row, "; ".join(said["modes"]), result["seconds"]])) + " |")
    planted = [one for one in results if CASES[one["case"] - 1].parts]
    named = sum(any(one["named"][by] for by in ("modes", "slices", "curves", "sweep")) for one in planted)
    told = wilson(named, len(planted))
    share = f" ({told.low:.0%} to {told.high:.0%})" if planted else ""
    return "\n".join([*lines, "", f"{named} of {len(planted)} planted weaknesses were named{share}."])


def main() -> None:
    """Run the cases that have no result yet, and print all."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--case", type=int, action="append", choices=range(1, len(CASES) + 1), help="repeatable")
    parser.add_argument("--results", type=Path, default=Path(tempfile.gettempdir()) / "planted_models.jsonl")
    given = parser.parse_args()
    known = [json.loads(line) for line in given.results.read_text().splitlines()] if given.results.exists() else []
    done = {one["case"]: one for one in known}
    for number in given.case or range(1, len(CASES) + 1):
        if number not in done:
            done[number] = run(number)
            with given.results.open("a") as lines:
                lines.write(json.dumps(done[number]) + "\n")
    print(table(list(done.values())))


if __name__ == "__main__":
    main()
