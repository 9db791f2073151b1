"""Measure how many hidden weaknesses mining finds, and its false findings: `python -m benchmarks.mining [SEEDS]`.

Each row of the printed table has a number of items, a budget and a failure rate elsewhere. For every seed, ten
weaknesses are hidden (five words that are only in a lexicon, three that occur in items, two attributes), or none.
"""

import sys

from stages.mining.mine import mine
from stages.mining.record import MineSettings
from tests.planted_words import SPACE, Planted, hide, texts

ROWS = [(240, 1000, 0.03), (240, 2000, 0.1)]


def main(seeds: int) -> None:
    """Print the table as Markdown."""
    print("| items | probes at most | fail elsewhere | found of hidden | named wrongly | none hidden: named |")
    print("|---|---|---|---|---|---|")
    for n, probes, noise in ROWS:
        found = hidden_ones = false = none = 0
        for seed in range(seeds):
            items, settings = texts(n, seed), MineSettings(probes=probes)
            hidden = hide(items, seed, put_in=5, said=3, attributes=2)
            mined = mine(items, SPACE, Planted(items, hidden, noise), settings, seed=seed)
            named = [set(one.facts) for one in mined.confirmed]
            found += sum(any(one <= facts for facts in named) for one in hidden)
            false += sum(not any(one <= facts for one in hidden) for facts in named)
            hidden_ones += len(hidden)
            none += len(mine(items, SPACE, Planted(items, [], noise), settings, seed=seed).confirmed)
        print(f"| {n} | {probes:,} | {noise:.0%} | {found} of {hidden_ones} | {false} | {none} |", flush=True)


if __name__ == "__main__":
    main(int(sys.argv[1]) if len(sys.argv) > 1 else 20)
