"""Derive alternatives.tsv from WordNet 3.0: `python derive_alternatives.py FOLDER`, with its data.* and index.sense.

The alternatives of a word are different words of the same sort that can replace it in a prompt. The rules:

* a word is common (`COMMON` in textblob's list of word frequencies) and mostly of its part of speech in WordNet's
  tagged texts. Its sense is the one it has there in at least `DOMINANT` of the cases, and at least `SEEN` times;
* a noun is singular and something a picture can show: in one of the lexicographer files `KINDS`;
* a noun's alternatives are in the same file and directly below its nearest hypernym. If there are fewer than `ENOUGH`,
  those below the next hypernym are added (`STEPS`). Hypernyms with more than `WIDE` senses below them are not used, as
  the words below "person" have little in common, nor are those whose words were read and found unlike (`VAGUE`);
* an adjective's alternatives are its antonyms, and a colour's are the other colours;
* among synonyms only the most common is an alternative;
* offensive words are left out: those marked in WordNet's usage domains (`OFFENSIVE`) and those found by reading
  (`UNFIT`);
* each line has a word, N or A, and up to `MOST` alternatives, most common first.

Of 200 pairs drawn at random, 13 were not of the same sort, such as "button" and "leash". With only first senses, common
words and hypernyms two steps up, there were 120 of 200, such as "bounty" and "installment". Both were judged by one
reader, who chose these rules in eight rounds of reading samples, and `VAGUE` by reading all nouns. Others may find more
errors. The price of the rules is that 663 words have alternatives instead of 7,339.
"""

import re
import sys
from collections import defaultdict
from collections.abc import Iterable
from pathlib import Path

from textblob.en import spelling

from stages.concepts.texts.lexicon import lemma, word_set

COMMON, SEEN, DOMINANT = 5, 1, 0.5
ENOUGH, MOST, STEPS, WIDE = 3, 6, 2, 250
KINDS = word_set("05 06 13 17 18 19 20")  # animal, artifact, food, object, person, phenomenon, plant
PLAIN = re.compile(r"[a-z]{3,}")
UNFIT = word_set(
    "bitch breast gay god jesus negro nazi whore slave cocaine heroin drug gun bomb"
    " idiot imbecile fool invalid diabetic sufferer hood"
)
VAGUE = {  # hypernyms whose words have little in common, found by reading them
    "04359589": "support",
    "04007894": "product",
    "03892891": "part",
    "04188643": "sheet",
    "04060904": "receptacle",
    "03079741": "compartment",
    "03302121": "excavation",
    "03315023": "facility",
    "03364340": "float",
    "03391770": "framework",
    "09287968": "geological formation",
    "02883344": "box",
    "03050026": "cloth covering",
    "04014297": "protective covering",
    "03953020": "place of business",
    "11425580": "atmospheric phenomenon",
    "08664443": "topographic point",
    "09629752": "traveler",
    "09630641": "unfortunate",
    "10752093": "victim",
    "04571088": "weight",
    "04566257": "weaponry",
    "04602044": "workplace",
    "10235549": "relative",
    "08511241": "bottom",
    "03700963": "machine",
    "11426530": "attraction",
    "11458624": "force",
    "03405265": "furnishing",
    "02402425": "cattle",
    "04493505": "tube",
}
OFFENSIVE = ("06717170", "06718862", "07124340")  # disparagement, ethnic slur, obscenity: synsets of WordNet
COLOURS = ("00366691", "00386392")  # chromatic, achromatic


class WordNet:
    """Synsets of one part of speech: their words, lexicographer files and pointers."""

    def __init__(self, path: Path) -> None:
        self.words: dict[str, list[str]] = {}
        self.file: dict[str, str] = {}
        self._sizes: dict[str, int] = {}
        self.to: dict[str, dict[str, list[str]]] = defaultdict(lambda: defaultdict(list))
        for line in path.read_text("ascii").splitlines():
            if line.startswith(" "):
                continue  # the licence
            synset, self.file[synset], kind, count, *rest = line.partition("|")[0].split()
            n = 2 * int(count, 16)
            self.words[synset] = [re.sub(r"\(.*", "", word) for word in rest[:n:2]]
            for k in range(n + 1, n + 1 + 4 * int(rest[n]), 4):
                if rest[k + 2] in ("s", "a", kind) or rest[k] == "-u":
                    self.to[synset][rest[k]].append(rest[k + 1])

    def below(self, synsets: Iterable[str]) -> list[str]:
        """Return the synsets one step below these."""
        return [lower for one in synsets for lower in self.to[one]["~"]]

    def size(self, synset: str) -> int:
        """Count the synsets below one, in any number of steps."""
        if synset not in self._sizes:
            self._sizes[synset] = sum(1 + self.size(lower) for lower in self.to[synset]["~"])
        return self._sizes[synset]


def usual_senses(folder: Path) -> dict[tuple[str, str], str]:
    """Return, by (word, N or A), the dominant synset of words that are mostly of that kind and have one."""
    kinds = {"1": "N", "2": "V", "3": "A", "5": "A", "4": "R"}
    uses: dict[str, dict[str, dict[str, int]]] = defaultdict(lambda: defaultdict(dict))
    for line in (folder / "index.sense").read_text("ascii").splitlines():
        key, synset, _, count = line.split()
        word, fields = key.split("%")
        uses[word][kinds[fields[0]]][synset] = int(count)
    found = {}
    for word, by_kind in uses.items():
        kind, senses = max(by_kind.items(), key=lambda one: sum(one[1].values()))
        usual, times = max(senses.items(), key=lambda one: one[1])
        if kind in "NA" and times >= max(SEEN, DOMINANT * sum(senses.values())):
            found[word, kind] = usual
    return found


def main() -> None:
    """Write alternatives.tsv beside this file."""
    folder = Path(sys.argv[1])
    nouns, adjectives = WordNet(folder / "data.noun"), WordNet(folder / "data.adj")
    offensive = {synset for one in OFFENSIVE for synset in nouns.to[one]["-u"]}
    colours = {other for one in COLOURS for other in adjectives.to[one]["&"]}
    senses = {
        (word, kind): synset
        for (word, kind), synset in usual_senses(folder).items()
        if PLAIN.fullmatch(word) and spelling.get(word, 0) >= COMMON
        if word not in UNFIT and synset not in offensive
        if kind == "A" or (lemma(word, "NN") == word and nouns.file[synset] in KINDS)
    }

    def usual(net: WordNet, kind: str, own: str, synsets: Iterable[str]) -> list[str]:
        """Return the most common word of each synset in the lexicographer file of `own`, without `own` itself."""
        alike = [s for s in dict.fromkeys(synsets) if s != own and net.file[s] == net.file[own]]
        words = [[w for w in net.words[s] if senses.get((w, kind)) == s] for s in alike]
        return sorted((max(some, key=spelling.__getitem__) for some in words if some), key=lambda w: (-spelling[w], w))

    lines = []
    for (word, kind), synset in senses.items():
        found: list[str] = []
        if kind == "N":
            above = [synset]
            for _ in range(STEPS):
                higher = [high for one in above for high in nouns.to[one]["@"]]
                above = [high for high in higher if nouns.size(high) <= WIDE and high not in VAGUE]
                if len(found) < ENOUGH:
                    near = nouns.below(above)
                    found += [w for w in usual(nouns, kind, synset, near) if w not in found]
        else:
            others = colours if synset in colours else adjectives.to[synset]["!"]
            found = usual(adjectives, kind, synset, others)
        if found:
            lines.append(f"{word}\t{kind}\t{' '.join(found[:MOST])}")
    header = "# Derived from WordNet 3.0 by derive_alternatives.py; see LICENSE-wordnet"
    target = Path(__file__).parents[2] / "stages" / "mining" / "data" / "alternatives.tsv"
    target.write_text("\n".join([header, *sorted(lines)]) + "\n", encoding="ascii")


if __name__ == "__main__":
    main()
