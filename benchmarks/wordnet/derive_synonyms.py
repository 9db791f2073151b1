"""Derive synonyms.tsv from WordNet 3.0: `python derive_synonyms.py FOLDER`, with WordNet's data.* and index.sense.

A synonym must read well in any context, so few words have one. The rules:

* a word is taken in the sense of at least `DOMINANT` of its uses in WordNet's tagged texts;
* a synonym is another single word of that synset that has this sense in those texts, in at least `FAMILIAR` of its own
  uses, and is common (`COMMON` in textblob's list of word frequencies);
* pairs that were read in news articles and found wrong are excluded (`REJECTED`);
* one line per word and part of speech: word, N/V/A/R, its synonyms from the most used one down.
"""

import re
import sys
from collections import defaultdict
from pathlib import Path

from textblob.en import spelling

DOMINANT, FAMILIAR, COMMON = 0.35, 0.15, 10
REJECTED = {  # pairs that differ in meaning in news articles
    pair
    for word, synonyms in {
        "say": "tell",
        "tell": "say state",
        "just": "but",
        "call": "name",
        "state": "province",
        "match": "correspond",
        "trial": "run",
        "bid": "command",
        "fly": "wing",
        "figure": "fig",
        "north": "northward",
        "further": "farther",
        "person": "soul someone mortal",
        "carry": "transport",
        "win": "gain",
        "concern": "relate",
        "part": "portion",
        "believe": "conceive",
        "think": "conceive",
        "secure": "procure",
        "child": "minor",
        "fellow": "lad",
        "government": "regime",
        "night": "dark",
        "put": "place position set lay",
        "place": "lay set position spot",
        "fight": "fighting",
        "offer": "offering",
        "growth": "growing",
        "employment": "employ",
        "severe": "wicked",
        "surround": "border",
        "personnel": "forces",
        "final": "net",
        "report": "describe",
        "describe": "report",
        "country": "state commonwealth",
        "nation": "state commonwealth",
        "shot": "shooting",
        "militant": "warlike",
        "shooting": "shot",
        "launch": "found",
        "away": "off",
        "source": "root",
        "spread": "gap",
        "nothing": "zero",
        "fail": "neglect",
        "target": "mark",
        "force": "pressure",
        "job": "business",
        "show": "present",
        "continue": "keep",
        "survive": "live",
        "disaster": "calamity",
        "militia": "reserves",
        "coach": "manager",
        "republic": "democracy",
        "very": "real",
        "ask": "inquire",
        "way": "fashion mode style",
        "ready": "make",
        "use": "apply",
        "become": "get",
        "family": "household",
    }.items()
    for pair in [(word, synonym) for synonym in synonyms.split()]
}
FILES = {"noun": "N", "verb": "V", "adj": "A", "adv": "R"}
KINDS = {"1": "N", "2": "V", "3": "A", "5": "A", "4": "R"}  # adjective satellites (5) are adjectives
PLAIN = re.compile(r"[a-z]{3,}")


def _uses(folder: Path) -> dict[tuple[str, str], dict[str, int]]:
    """Return (word, kind) -> synset -> number of uses in the tagged texts."""
    uses: dict[tuple[str, str], dict[str, int]] = defaultdict(dict)
    for line in (folder / "index.sense").read_text("ascii").splitlines():
        key, synset, _, count = line.split()
        word, fields = key.split("%")
        uses[word, KINDS[fields[0]]][synset] = int(count)
    return uses


def main() -> None:
    """Write synonyms.tsv beside this file."""
    folder = Path(sys.argv[1])
    uses = _uses(folder)
    lines = []
    for file, kind in FILES.items():
        for line in (folder / f"data.{file}").read_text("ascii").splitlines():
            if line.startswith(" "):
                continue  # the licence
            synset, _, _, n, *rest = line.split()
            words = [w for w in rest[: 2 * int(n, 16) : 2] if PLAIN.fullmatch(w)]
            seen = {w: uses[w, kind].get(synset, 0) for w in words}
            shares = {w: seen[w] / max(1, sum(uses[w, kind].values())) for w in words}
            good = sorted(
                (w for w in words if shares[w] >= FAMILIAR and spelling.get(w, 0) >= COMMON), key=lambda w: -seen[w]
            )
            for word in words:
                synonyms = [w for w in good if w != word and (word, w) not in REJECTED]
                if synonyms and seen[word] and shares[word] >= DOMINANT:
                    lines.append(f"{word}\t{kind}\t{' '.join(synonyms)}")
    header = "# Derived from WordNet 3.0 by derive_synonyms.py; see LICENSE-wordnet"
    target = Path(__file__).parents[2] / "stages" / "concepts" / "texts" / "data" / "synonyms.tsv"
    target.write_text("\n".join([header, *sorted(lines)]) + "\n", encoding="ascii")


if __name__ == "__main__":
    main()
