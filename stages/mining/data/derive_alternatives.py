"""Derive alternatives.tsv from WordNet 3.0: `python derive_alternatives.py FOLDER`, with its data.* and index.sense.

What may stand in a prompt where a word stands, saying something else of the same sort:

* a noun's are the nouns below the nearest of its hypernyms that has enough of them, two steps down at most;
* an adjective's are its antonyms, and what is similar to the same adjective as it is;
* words are taken in the sense that people use most, are common in textblob's list of word frequencies, and are no
  more often another part of speech in WordNet's tagged texts;
* one line for each word and part of speech: word, N or A, its alternatives from the most used one down.
"""

from __future__ import annotations

import re
import sys
from collections import Counter, defaultdict
from pathlib import Path

from textblob.en import spelling

from stages.concepts.texts.lexicon import word_set

COMMON, ENOUGH, MOST, STEPS = 3, 4, 6, 2  # uses in textblob's list; alternatives of a word; steps up
PLAIN = re.compile(r"[a-z]{3,}")
UNFIT = word_set("bitch breast gay god jesus negro nazi whore slave cocaine heroin drug gun bomb")


class WordNet:
    """Synsets of one part of speech: their words, and where their pointers lead."""

    def __init__(self, path: Path) -> None:
        self.words: dict[str, list[str]] = {}
        self.to: dict[str, dict[str, list[str]]] = defaultdict(lambda: defaultdict(list))
        for line in path.read_text("ascii").splitlines():
            if line.startswith(" "):
                continue  # the licence
            synset, _, kind, count, *rest = line.partition("|")[0].split()
            n = 2 * int(count, 16)
            self.words[synset] = [re.sub(r"\(.*", "", word) for word in rest[:n:2]]
            for k in range(n + 1, n + 1 + 4 * int(rest[n]), 4):
                if rest[k + 2] in ("s", "a", kind):
                    self.to[synset][rest[k]].append(rest[k + 1])

    def below(self, synsets: list[str]) -> list[str]:
        """Synsets a step below some."""
        return [lower for one in synsets for lower in self.to[one]["~"]]


def first_senses(folder: Path) -> dict[tuple[str, str], str]:
    """(word, N or A) -> the synset that people mean most often by it, of words that are mostly of that kind."""
    kinds = {"1": "N", "2": "V", "3": "A", "5": "A", "4": "R"}
    found, uses = {}, dict[str, Counter[str]]()
    for line in (folder / "index.sense").read_text("ascii").splitlines():
        key, synset, sense, count = line.split()
        word, fields = key.split("%")
        kind = kinds[fields[0]]
        uses.setdefault(word, Counter())[kind] += int(count)
        if sense == "1":
            found[word, kind] = synset
    return {
        (word, kind): synset
        for (word, kind), synset in found.items()
        if kind in "NA" and uses[word][kind] == max(uses[word].values())
    }


def main() -> None:
    """Write alternatives.tsv beside this file."""
    folder = Path(sys.argv[1])
    senses, nouns, adjectives = first_senses(folder), WordNet(folder / "data.noun"), WordNet(folder / "data.adj")

    def usual(net: WordNet, kind: str, synsets: list[str], word: str) -> list[str]:
        """The words of some synsets that people would use, each in its usual sense."""
        words = {w for s in synsets for w in net.words[s] if PLAIN.fullmatch(w) and senses.get((w, kind)) == s}
        own = senses[word, kind]
        common = [w for w in words - UNFIT if senses[w, kind] != own and spelling.get(w, 0) >= COMMON]
        return sorted(common, key=lambda w: (-spelling[w], w))

    lines = []
    for (word, kind), synset in senses.items():
        if not PLAIN.fullmatch(word) or spelling.get(word, 0) < COMMON or word in UNFIT:
            continue
        found: list[str] = []
        if kind == "N":
            above = [synset]
            for _ in range(STEPS):
                above = [higher for one in above for higher in nouns.to[one]["@"]]
                near = nouns.below(above)
                for synsets in (near, nouns.below(near)):
                    if len(found) < ENOUGH:
                        found += [w for w in usual(nouns, "N", synsets, word) if w not in found]
        else:
            heads = adjectives.to[synset]["&"] or [synset]  # of a satellite its head, of a head its satellites
            opposite = [other for one in {synset, heads[0]} for other in adjectives.to[one]["!"]]
            alike = [other for one in heads for other in adjectives.to[one]["&"]]
            found = usual(adjectives, "A", opposite, word)
            found += [w for w in usual(adjectives, "A", alike, word) if w not in found]
        if found:
            lines.append(f"{word}\t{kind}\t{' '.join(found[:MOST])}")
    header = "# Derived from WordNet 3.0 by derive_alternatives.py; see LICENSE-wordnet"
    target = Path(__file__).with_name("alternatives.tsv")
    target.write_text("\n".join([header, *sorted(lines)]) + "\n", encoding="ascii")


if __name__ == "__main__":
    main()
