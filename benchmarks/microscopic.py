"""Microscopic exploration on exact ground truth: what each method finds, and how many queries it takes.

`python -m benchmarks.microscopic` uses the 80 searched items of an enumerated landscape (MNIST, four concepts of seven
levels); agents are trained on its 80 other items. Takes about two minutes on one core.
"""

from collections.abc import Callable

import numpy as np
import torch

from benchmarks.study.run import make_landscape
from stages.explorers.prober import Prober
from stages.microscopic.agent import train_and_walk
from stages.microscopic.settings import WalkerSettings
from stages.microscopic.walks import (
    NEVER,
    Moves,
    WalkState,
    reduce_strongest,
    search_layers,
    try_alone,
    walk_back,
    widths,
)

SEEDS = (0, 1, 2)


def greedy(walks: WalkState) -> None:
    """Always take the step that fails most clearly."""
    search_layers(walks, 1)


def beam_alone(walks: WalkState) -> None:
    """Run one beam search of width 5, nothing else."""
    search_layers(walks, 5)


def quick(walks: WalkState) -> None:
    """Run the first part of method beam."""
    reduce_strongest(walks, try_alone(walks))
    walk_back(walks)


def beam(walks: WalkState) -> None:
    """Run method beam, up to its widest beam or until the budget is spent."""
    quick(walks)
    for width in widths(8):
        search_layers(walks, width)
        walk_back(walks)


def exact(walks: WalkState) -> None:
    """Run method exact."""
    quick(walks)
    search_layers(walks, None)


def main() -> None:
    """Print the table."""
    torch.set_num_threads(1)
    task = make_landscape("mnist_tuning", 0)
    walking, others = task.items.ids("discover"), task.items.ids("test")
    moves = Moves(task.concepts, task.concepts.start)
    cells = task.concepts.cells()
    truth = np.where(task.failed(walking, cells), moves.steps(cells), NEVER).min(axis=1)
    print(f"{'method':34}{'found':>7}{'steps':>7}{'smallest':>10}{'one more':>10}{'queries':>9}   (items, means)")

    def tell(name: str, walks: WalkState) -> None:
        found = walks.radius < NEVER
        excess = walks.radius[found] - truth[found]
        print(
            f"{name:34}{found.mean():7.2f}{walks.radius[found].mean():7.2f}{(excess == 0).mean():10.2f}"
            f"{(excess <= 1).mean():10.2f}{walks.queries.mean():9.1f}",
            flush=True,
        )

    def run(name: str, method: Callable[[WalkState], None], each: int = len(cells)) -> None:
        walks = WalkState(Prober(task, walking, each * len(walking)), moves, len(walking))
        method(walks)
        tell(name, walks)

    run("greedy", greedy)
    run("a single beam of 5", beam_alone)
    run("alone, together, taken back", quick)
    for each in (20, 40, 80, len(cells)):
        run(f"beam, {each} queries an item" if each < len(cells) else "beam, no limit", beam, each)
    run("exact", exact)
    for budget in (2000, 8000):
        for seed in SEEDS:
            prober = Prober(task, [*walking, *others], 10 * budget)
            walks = WalkState(prober, moves, len(walking))
            settings = WalkerSettings(training=0.1, walks=1)
            details = train_and_walk(walks, settings, seed)
            tell(f"rl, {details['training_probes']} to train, seed {seed}", walks)
            walk_back(walks)
            tell("    and taken back", walks)


if __name__ == "__main__":
    main()
