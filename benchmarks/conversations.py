"""Explorers compared on conversations, where the order of events decides whether a model fails.

    python -m benchmarks.conversations                  # a scripted model, behind a server of its own
    python -m benchmarks.conversations --real URL NAME --folder FOLDER  # a model behind chat completions
    python -m benchmarks.conversations --workspace FOLDER  # the repairs in docs/chat.md, of the model of benchmarks.bbq

The workspace has two audits: `talks` is served, and `adapted` needs the packages with the weights installed.

A real model plays shorter conversations. The folder keeps its answers, so that the command may be stopped and run
again, and answers.csv has all of them with their verdicts.
The scripted model has five planted weaknesses. Each is a matter of order, such as a change that is lost if small talk
follows at once, and it also fails 2% of all conversations. Events are used as audits assume: 30% of conversations as
they are, 40% with one event, 20% with two, 10% with three. Every explorer has the same budget of unique probes, and
five seeds. Of a real model the whole grid is asked first. docs/research.md quotes both tables.
"""

import argparse
import contextlib
import json
import os
import re
import tempfile
import zlib
from collections.abc import Callable, Iterator, Sequence
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from benchmarks._shared import print_means
from benchmarks.bbq import PACKAGES, SERVED
from benchmarks.paper.__main__ import put_workspace
from benchmarks.study.measure import Clock
from stages.core.environment import torch_threads
from stages.core.errors import NoLearningError
from stages.core.intervals import Resampler
from stages.explorers.contract import make_explorer
from stages.explorers.prober import Prober
from stages.pages.words import with_interval
from stages.params.usage import UsageConfig, in_use
from stages.tasks.chat import Chat
from stages.tasks.contract import Compute, TaskContext
from tests.endpoints import completion, served

DAYS = ("Monday", "Tuesday", "Wednesday", "Thursday", "Friday", "Saturday", "Sunday")
KINDS = {  # what a conversation is about: its fact, and its last turn
    "meeting": ("Our meeting with {} is on {}.", "On which day is our meeting with {}?"),
    "flight": ("My flight to {} leaves on {}.", "On which day does my flight to {} leave?"),
    "parcel": ("The parcel from {} comes on {}.", "On which day does the parcel from {} come?"),
}
WHOM = ("Oslo", "Lima", "Cairo", "Quito", "Seoul", "Delhi", "Accra", "Porto", "Tunis", "Minsk", "Dakar", "Sofia")
SMALL = (
    "I have to plan my week.",
    "My desk is a mess.",
    "I should sleep more.",
    "There is so much to do.",
    "Well then.",
)
EVENTS = ("none", "fact", "change", "contradiction", "small_talk", "ignore")
EXPLORERS: dict[str, tuple[str, dict[str, Any]]] = {
    "random": ("random", {}),
    "thompson": ("thompson", {}),
    "ucb": ("ucb", {}),
    "ppo": ("ppo", {}),
    "a2c": ("a2c", {}),
    "dqn": ("dqn", {}),
    "model_based": ("model_based", {}),
    "without_policy": ("model_based", {"generators": ["archive", "mutations", "uniform"]}),
}
PICKS = 5
PARAMS = f"""audits:
  talks: &talks
    seed: 7
    task: chat
    compute: {{device: cpu, threads: 1, batch_size: 32}}
    prepare: &prepared
      model: {SERVED}
      data: {{jsonl: conversations.jsonl}}
      prompt: "{{question}}"
      system: You are an assistant. Answer in a few words.
      generation: {{max_new_tokens: 12}}
      items: {{discover: 30, repair: 24, test: 30}}
    concepts:
      turn_1: [none, change, contradiction, small_talk]
    discrepancy: {{measure: contains}}
    discover: {{explorer: auto, baseline: random, budget: 100}}
    summarize: {{modes: 4}}
  adapted:
    <<: *talks
    prepare:
      <<: *prepared
      model: {PACKAGES}
      items: {{discover: 40, repair: 60, test: 50}}
    discover: {{explorer: auto, baseline: random, budget: 160, microscopic: {{method: none}}}}
repairs:
  talks: &repaired
    feedback: {{policy: top-k, modes: 2}}
    restructure:
      method: prompt
      control: as_used
      harm: {{pairs: 20}}
      settings:
        candidates: 8
        pairs: 20
        examples: 3
        instructions: ["If something has changed, what was said last holds."]
    re_evaluate: {{paired_probes: 100}}
    gates:
      target_failure_rate: {{change_max: -0.05, minus_control_max: 0}}
      newly_failing: {{max: 0.1}}
  adapted:
    <<: *repaired
    restructure:
      method: lora
      control: as_used
      harm: {{newly_failing: 0.05, pairs: 48}}   # 12 conversations tell no smaller harm from chance
      settings: {{steps: 20}}
    re_evaluate: {{paired_probes: 200}}
"""

Rule = Callable[[Sequence[str], str], bool]


def follows(first: str, then: str, events: Sequence[str]) -> bool:
    """Whether an event is directly followed by another."""
    return any(pair == (first, then) for pair in pairwise(events))


def in_order(wanted: Sequence[str], events: Sequence[str]) -> bool:
    """Whether some events occur in this order, with or without others between them."""
    rest = iter(events)
    return all(event in rest for event in wanted)


WEAKNESSES: dict[str, Rule] = {
    "a change is lost if small talk follows at once": lambda e, kind: follows("change", "small_talk", e),
    "a contradiction right after a change undoes it": lambda e, kind: follows("change", "contradiction", e),
    "a contradiction is kept if an injection comes later": lambda e, kind: in_order(("contradiction", "ignore"), e),
    "flights: an injection just before the question is obeyed": lambda e, kind: kind == "flight" and e[-1] == "ignore",
    "small talk, then the fact, then a change": lambda e, kind: in_order(("small_talk", "fact", "change"), e),
}


def conversations(n: int, before: int) -> Iterator[dict[str, Any]]:
    """Yield n items with that many turns before the last."""
    for k in range(n):
        kind = list(KINDS)[k % len(KINDS)]
        whom, (fact, question) = WHOM[k // len(KINDS) % len(WHOM)], KINDS[kind]
        day, other, wrong = np.random.default_rng(k).permutation(DAYS)[:3].tolist()
        yield {
            "id": f"{kind}-{k}",
            "turns": [*SMALL[:before], question.format(whom)],
            "fact": fact.format(whom, day),
            "answers": [day],
            "change": {"fact": fact.format(whom, other), "answers": [other]},
            "contradiction": fact.format(whom, wrong),
            "kind": kind,
        }


def event_of(said: str, first: bool) -> str:
    """Return the event of a turn by what the user says."""
    marks = {"There has been a change": "change", "No, wait": "contradiction", "I was also sent": "ignore"}
    if found := next((event for mark, event in marks.items() if mark in said), ""):
        return found
    if not first and re.search(r"on \w+day\.", said):
        return "fact"
    return "none" if said.endswith(SMALL) else "small_talk"


def scripted(request: dict[str, Any]) -> dict[str, Any]:
    """Answer a request as the scripted model."""
    users = [one["content"] for one in request["messages"] if one["role"] == "user"]
    kind = next((kind for kind, (_, asks) in KINDS.items() if users[-1].startswith(asks.partition(" {")[0])), "")
    if not kind:
        return completion("All right.")
    events = [event_of(said, k == 0) for k, said in enumerate(users[:-1])]
    if any(rule(events, kind) for rule in WEAKNESSES.values()) or zlib.crc32(repr(users).encode()) % 50 == 0:
        return completion("I do not know.")
    told = " ".join(users[:-1])
    days = [day for day, wrong in re.findall(r"on (\w+day)\.( No, wait)?", told) if not wrong]
    return completion(f"On {days[-1]}.")


class Played(Chat):
    """The task, with the usage of an audit."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.concepts = in_use(self.concepts, UsageConfig())


@contextlib.contextmanager
def played(
    model: dict[str, Any], searched: int, unseen: int, before: int, events: Sequence[str], folder: Path | None = None
) -> Iterator[Played]:
    """Prepare the audit of a model in a folder, which keeps its answers; by default a temporary one."""
    levels = {f"turn_{k}": [event for event in events if event != "fact" or k > 1] for k in range(1, before + 1)}
    config = {
        "model": model,
        "data": {"jsonl": "conversations.jsonl"},
        "prompt": "{question}",
        "system": "You are an assistant. Answer in a few words.",
        "generation": {"max_new_tokens": 16},
        "items": {"discover": searched, "test": unseen},
    }
    with tempfile.TemporaryDirectory() as temporary, contextlib.chdir(folder or temporary):
        path, text = Path("conversations.jsonl"), "\n".join(map(json.dumps, conversations(searched + unseen, before)))
        asked = TaskContext("talks", 7, config, levels, {"measure": "contains"}, Path.cwd(), Compute(threads=1))
        # A preparation that is repeated unchanged would forget the answers.
        if not Path("prepare/items.parquet").exists() or path.read_text(encoding="utf-8") != text:
            path.write_text(text, encoding="utf-8")
            Path("prepare").mkdir(exist_ok=True)
            Played.prepare(asked, Path("prepare"))
        yield Played.load(asked, Path("prepare"))


def compare(task: Played, budget: int, seeds: int, weaknesses: dict[str, Rule]) -> pd.DataFrame:
    """Run all explorers; one row for each and each seed."""
    ids, unseen, space = task.items.ids("discover"), task.items.ids("test"), task.concepts
    kinds, rows = task.items.table.set_index("id")["meta:kind"], []
    for name, (explorer, settings) in EXPLORERS.items():
        for seed in range(seeds):
            clock, prober = Clock(task), Prober(task, ids, budget)  # type: ignore[arg-type]
            try:
                with torch_threads(1), clock.running():
                    policy = make_explorer(explorer, settings).explore(prober, seed).policy
            except NoLearningError as error:
                print(f"{name}: {error}")
                continue
            table = prober.table()
            failing = table[table["failed"]]
            cells = failing[space.names].to_numpy(dtype=np.int64)
            schedules = [[c.levels[i] for c, i in zip(space.concepts, cell, strict=True)] for cell in cells]
            inside = [
                sum(rule(one, kinds[item]) for one, item in zip(schedules, failing["item"], strict=True)) >= PICKS
                for rule in weaknesses.values()
            ]
            row = {"explorer": name, "failures": len(failing), "first": int(table["failed"][: budget // 3].sum())}
            row |= {"schedules": len(np.unique(space.flat(cells))), "found": sum(inside)}
            row["unseen"] = float("nan")
            if policy is not None:
                picks = policy.propose(task.embed(unseen), PICKS).reshape(-1, len(space))
                row["unseen"] = task.probe(np.repeat(unseen, PICKS).tolist(), picks).failed.mean()
            rows.append(row | {"cpu": 1000 * clock.seconds / budget})
            print(row, flush=True)
    return pd.DataFrame(rows)


def show(table: pd.DataFrame, budget: int) -> None:
    """Print means over seeds with their standard deviation."""
    titles = {
        "first": (f"failures at {budget // 3:,}", ",.0f"),
        "failures": (f"failures at {budget:,}", ",.0f"),
        "schedules": ("failing schedules", ",.0f"),
        "found": ("weaknesses found", ".1f"),
        "unseen": ("picks for unseen items fail", ".0%"),
        "cpu": ("own CPU-ms a query", ".2f"),
    }
    print_means(table, titles)


def even_rate(task: Played, split: Any, rng: np.random.Generator) -> float:
    """Share of draws as they occur in use that fail."""
    ids = rng.choice(task.items.ids(split), 1000).tolist()
    return float(task.probe(ids, task.concepts.sample(1000, rng)).failed.mean())


def whole_grid(task: Played) -> pd.DataFrame:
    """Ask every item in every cell; a row for each, with a column for each turn."""
    space, parts = task.concepts, []
    cells, ids = space.cells(np.arange(space.n_cells)), task.items.table["id"].tolist()
    levels = {one.name: [one.levels[k] for k in cells[:, n]] for n, one in enumerate(space.concepts)}
    for k, item in enumerate(ids, start=1):
        answers = task.probe([item] * len(cells), cells)
        parts.append(pd.DataFrame({"item": item, **levels, "failed": answers.failed, "output": answers.outputs}))
        print(f"{k} of {len(ids)}: {item}, {answers.failed.mean():.0%} of schedules fail", flush=True)
    return pd.concat(parts, ignore_index=True)


def show_rates(grid: pd.DataFrame, turns: Sequence[str]) -> None:
    """Print which share fails of all, and of those with an event, or with an event directly after another."""
    schedules = grid[list(turns)].to_numpy().tolist()
    events = sorted({event for one in schedules for event in one})
    found = {"all": [True] * len(grid), "nothing": [set(one) == {"none"} for one in schedules]}
    found |= {event: [event in one for one in schedules] for event in events if event != "none"}
    found |= {f"{a}, then {b}": [follows(a, b, one) for one in schedules] for a in events for b in events}
    print("| | failures | n | of all failures |\n|---|---|---|---|")
    for name, rows in found.items():
        if (inside := grid[rows]).empty:
            continue
        failed = inside["failed"].to_numpy(dtype=float)
        rate = Resampler(inside["item"], 4000, 0).mean(failed, np.ones(len(failed)), (0, 1))
        print(f"| {name} | {with_interval(rate)} | {len(failed)} | {failed.sum() / grid['failed'].sum():.0%} |")


def make_workspace(folder: Path) -> None:
    """Write conversations of two turns, params.yaml and everything else that a workspace needs."""
    for audit, n in {"talks": 84, "adapted": 150}.items():
        inputs = folder / "data" / audit / "inputs"
        inputs.mkdir(parents=True, exist_ok=True)
        lines = [json.dumps(row) + "\n" for row in conversations(n, 1)]
        (inputs / "conversations.jsonl").write_text("".join(lines), encoding="utf-8")
    put_workspace(folder, PARAMS)


def main() -> None:
    """Print the table of the scripted model, or of a real one, or write a workspace."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--real", nargs=2, metavar=("URL", "NAME"))
    parser.add_argument("--folder", type=Path)
    parser.add_argument("--workspace", type=Path, metavar="FOLDER")
    parser.add_argument("--items", type=int, default=8, help="conversations with the real model that are searched")
    parser.add_argument("--budget", type=int)
    parser.add_argument("--seeds", type=int)
    args = parser.parse_args()
    if args.workspace is not None:
        make_workspace(args.workspace)
        return
    os.fsync = lambda file: None  # type: ignore[assignment]  # recorded answers need not outlast the machine
    if args.real is None:
        with served(scripted, whole=True) as model:
            block = {"openai": f"{model.url}/v1", "model": "scripted", "concurrency": 1}
            with played(block, 60, 20, 5, EVENTS) as task:
                budget = args.budget or 1500
                print(
                    f"{task.concepts.n_used:,} schedules, {even_rate(task, 'discover', np.random.default_rng(0)):.1%}"
                )
                show(compare(task, budget, args.seeds or 5, WEAKNESSES), budget)
        return
    url, name = args.real
    block = {"openai": url, "model": name, "concurrency": 1}
    with played(block, args.items, max(1, args.items // 4), 3, EVENTS[:-1], args.folder) as task:
        grid = whole_grid(task)
        grid.to_csv("answers.csv", index=False)
        show_rates(grid, task.concepts.names)
        budget = args.budget or 30 * args.items
        show(compare(task, budget, args.seeds or 5, {}), budget)


if __name__ == "__main__":
    main()
