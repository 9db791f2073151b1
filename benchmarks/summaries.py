"""Summaries per CPU-second: `LanguageModel.summarize` against bare batched `generate` of the same model.

    .venv/bin/python -m benchmarks.summaries [--prepared data/news/prepare] [--articles 48] [--threads 1]

Needs the audit's prepare stage (run `faded audit news` once) for its model and items. Both are measured in turn, in one
process, on the same articles and threads; in CPU time, because cores may be shared:

- *bare*: token ids in memory, sorted by length and padded to the longest of each batch, through `generate`, in batches
  of 8, 16 and 32 articles; the fastest counts. Nothing is decoded.
- *summarize*: texts in, texts out, as a probe uses it, at the audit's batch size, with the padding that makes answers
  independent of the rest of the batch.
"""

from __future__ import annotations

import argparse
import json
import statistics
import time
from pathlib import Path

import pandas as pd
import torch

from stages.core.files import stage_dir
from stages.tasks.contract import Compute
from stages.tasks.language.models import load_summarizer

SIZES = (8, 16, 32)


def cpu(work) -> float:
    """Measure the CPU-seconds of this process, all threads."""
    start = time.process_time()
    work()
    return time.process_time() - start


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--prepared", type=Path, default=stage_dir("news", "prepare"))
    parser.add_argument("--articles", type=int, default=48)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--batch-size", type=int, default=16, help="of summarize")
    parser.add_argument("--rounds", type=int, default=3)
    args = parser.parse_args()

    torch.set_num_threads(args.threads)
    summarizer = load_summarizer(args.prepared / "model", Compute(threads=args.threads, batch_size=args.batch_size))
    articles = pd.read_parquet(args.prepared / "items.parquet")["article"].tolist()[: args.articles]
    prompts = sorted((summarizer.inputs(article) for article in articles), key=len)
    tokenizer, new = summarizer.tokenizer, summarizer.form.generation.max_new_tokens
    tokenizer.padding_side = "left" if summarizer.form.kind == "causal" else "right"

    def bare(size: int) -> None:
        with torch.inference_mode():
            for start in range(0, len(prompts), size):
                batch = tokenizer.pad({"input_ids": prompts[start : start + size]}, return_tensors="pt")
                summarizer.model.generate(**batch, max_new_tokens=new, do_sample=False)

    works = {f"bare, batch {size}": lambda size=size: bare(size) for size in SIZES}
    works["summarize"] = lambda: summarizer.summarize(articles)
    summarizer.summarize(articles[: args.batch_size])  # initialises kernels and caches
    rates: dict[str, list[float]] = {name: [] for name in works}
    walls: dict[str, list[float]] = {name: [] for name in works}
    for _ in range(args.rounds):
        for name, work in works.items():
            start = time.perf_counter()
            rates[name].append(len(articles) / cpu(work))
            walls[name].append(len(articles) / (time.perf_counter() - start))

    median = {name: statistics.median(values) for name, values in rates.items()}
    best = max((name for name in median if name != "summarize"), key=median.__getitem__)
    result = {
        "model": summarizer.form.origin,
        "threads": args.threads,
        "batch_size": args.batch_size,
        "articles": len(articles),
        "tokens_of_a_prompt": statistics.median(map(len, prompts)),
        "summaries_per_cpu_second": median,
        "summaries_per_second": {name: statistics.median(values) for name, values in walls.items()},
        "best_bare": best,
        "summarize_to_bare": median["summarize"] / median[best],
    }
    print(json.dumps(result, indent=1, default=lambda x: round(x, 3)))


if __name__ == "__main__":
    main()
