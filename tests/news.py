"""A tiny news data set, a summarizer with random weights, and the context of an audit of them."""

import json
from pathlib import Path
from typing import Any

import numpy as np

from stages.tasks.contract import Compute, TaskContext
from tests.tiny_models import tiny_causal, tiny_embedder
from tests.workspace import audit_params

WHO = ("The council of", "Police in", "The minister for", "Doctors in", "The union of", "A spokesman for")
DID = ("said there would be", "warned of", "told reporters about", "asked for", "voted against", "had to stop")
WHAT = ("a new bridge", "the strike", "more money", "the closure", "a second fire", "longer hours", "the inquiry")
WHEN = ("on Monday", "before they left", "after the rain", "for the first time", "since last winter", "and it was late")
SYLLABLES = ("bar", "ken", "lo", "mur", "ta", "vil", "os", "ri", "dan", "hep")


def articles(n: int, seed: int = 0) -> list[str]:
    """Different articles of six sentences, about 80 words each; names keep phrases from being copies."""
    rng = np.random.default_rng(seed)

    def name() -> str:
        return "".join(rng.choice(SYLLABLES, 3)).capitalize()

    def sentence() -> str:
        who, did, what, when = (rng.choice(options) for options in (WHO, DID, WHAT, WHEN))
        return f"{who} {name()} {did} {what} near {name()} {when}."

    return [" ".join(sentence() for _ in range(6)) for _ in range(n)]


def write_news(folder: Path, n: int = 40, *, references: bool = False) -> Path:
    """The inputs of an audit: news.jsonl with n articles, and the folders model and embedder."""
    folder.mkdir(parents=True, exist_ok=True)
    lines = [{"body": text, **({"summary": text.split(". ")[0] + "."} if references else {})} for text in articles(n)]
    (folder / "news.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    tiny_causal(folder / "model")
    tiny_embedder(folder / "embedder")
    return folder


def news_context(inputs: Path, **changes: Any) -> TaskContext:
    """The context of an audit of these articles; keyword arguments replace its parts."""
    parts: dict[str, Any] = {
        "audit": "tiny_news",
        "seed": 3,
        "config": {
            "model": {"transformers": "model"},
            "embedder": {"transformers": "embedder"},
            "generation": {"max_new_tokens": 12},
            "data": {"jsonl": "news.jsonl", "text": "body"},
            "items": {"discover": 10, "repair": 6, "test": 5},
        },
        "concepts": {"typos": [0, 0.1, 0.4], "letter_case": ["as_is", "upper"]},
        "discrepancy": {"threshold": 0.1, "validity": -1},
        "inputs": inputs,
        "compute": Compute(threads=1, batch_size=8),
    }
    return TaskContext(**{**parts, **changes})


def news_audit(context: TaskContext, budget: int, **discover: Any) -> dict[str, Any]:
    """The block of params.yaml of an audit with this context, searched at random."""
    return audit_params(
        task="stages.tasks.summarization:Summarization",
        compute={"device": "cpu", "threads": 1, "batch_size": 6, "gpus": 0},
        prepare=dict(context.config),
        concepts=dict(context.concepts),
        discrepancy=dict(context.discrepancy),
        discover={"explorer": "random", "baseline": "random", "budget": budget, **discover},
    )
