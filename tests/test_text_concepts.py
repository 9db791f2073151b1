"""Text concepts do what their names say, word by word, and change nothing at their neutral level."""

import re
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest

from stages.concepts.texts import (
    CATALOGUE,
    TextConcept,
    TextTransforms,
    check_text_concepts,
    edit_letters,
    lexicon,
    reword,
    sentences,
    text_space,
)
from stages.concepts.texts.document import parse
from stages.core.errors import UsageError

ARTICLE = (
    "Hundreds of people have been forced to vacate their homes in the Southern Highlands of New South Wales as strong"
    " winds today pushed a huge bushfire towards the town of Hill Top. The police officers found three dogs (and a"
    ' small cat), which were not afraid. "The falls have been quite isolated in those areas," Mr. Smith said.\n\n'
    "As more than 100 blazes burn on New Year's Eve, fire crews have been called to a new fire at 4:00pm. It began"
    " near Goulburn, south-west of Sydney, and it doesn't threaten the U.S. embassy.  Rain has fallen in some parts of"
    " the north coast; however, the bureau wants more information.\n"
)
ODD = [
    "", " ", "\n\n", "a", "Rain", "Rain.", "?!...", ", , ,", "((()))[]\"\"", " leading", "trailing \n", "a\tb\r\nc",
    "\x00\u200b\ufeff", "😀 👨‍👩‍👧 ok", "日本語の文章です。次の文。", "नमस्ते दुनिया",
    "Straße ÄÖÜ ﬁ İstanbul", "x" * 5_000,
    "http://a.b/c?d=e&f=g", "don't 'tis rock'n'roll O'Neil's", "1,000 4:00pm $5 50% 72nd", "U.S. J. K. Rowling Mr. X.",
    "“Quoted,” he said — twice… and/or not", "Hunde bellen. Der Hund wurde gesehen.", "not not no never cannot can't",
    "N'T said he.", "n't", "Police sai n't know it .", "They ca n\u2019t",
]  # fmt: skip
STRONG = dict.fromkeys(CATALOGUE, 1.0) | {"letter_case": "upper", "word_order": 5.0}
MIDDLE = dict.fromkeys(CATALOGUE, 0.5) | {"letter_case": "title", "word_order": 2.0}


def change(text: str, seed: int = 0, item: str = "a1", repeat: int = 0, **levels: float | str) -> str:
    space = text_space({name: [CATALOGUE[name].neutral, level] for name, level in levels.items()})
    return TextTransforms(space, seed)(text, item, np.ones(len(levels), dtype=int), repeat)


def words(text: str) -> list[str]:
    return re.findall(r"[^\W_]+(?:[-'.:,][^\W_]+)*", text)


def differing(text: str, changed: str) -> set[int]:
    """Indices of the words that differ between two texts with the same number of words."""
    assert len(words(text)) == len(words(changed))
    return {i for i, (a, b) in enumerate(zip(words(text), words(changed), strict=True)) if a != b}


def is_subsequence(part: list[str], whole: list[str]) -> bool:
    rest = iter(whole)
    return all(word in rest for word in part)


def test_wrong_concepts_and_levels_are_named_with_what_was_meant():
    typos, cases = [0, 2, "much", True, float("nan")], ["as_is", "uper"]
    errors = check_text_concepts({"tipos": [0], "typos": typos, "letter_case": cases, "word_order": [-1]})
    assert errors == [
        "concepts.tipos: unknown concept, did you mean 'typos'?; known: " + ", ".join(CATALOGUE),
        "concepts.typos: level 2 is outside 0..1",
        "concepts.typos: level 'much' is not a number",
        "concepts.typos: level True is not a number",
        "concepts.typos: level nan is not a number",
        "concepts.letter_case: level 'uper' is not one of as_is, lower, title, upper, random, did you mean 'upper'?",
        "concepts.word_order: level -1 is outside 0..100 words",
    ]


def test_libraries_that_are_not_installed_are_named_beforehand(monkeypatch):
    monkeypatch.setattr(lexicon, "LIBRARIES", {"codespell": "no_such_module"})
    (told,) = check_text_concepts({"typos": [0, 1]})
    assert told == "concepts: the library codespell is not installed: pip install 'faded[text]'"
    lexicon._misspellings.cache_clear()
    with pytest.raises(UsageError, match="misspellings needs the library codespell"):
        change("Nobody believes it.", misspellings=1)


@pytest.mark.parametrize("name", CATALOGUE)
def test_neutral_leaves_every_bit_and_a_strong_level_does_not(name):
    transforms = TextTransforms(text_space({name: [CATALOGUE[name].neutral, STRONG[name]]}), seed=0)
    assert transforms(ARTICLE, "a1", np.array([0])) == ARTICLE and transforms(ARTICLE, "a1", np.array([1])) != ARTICLE


@pytest.mark.parametrize("text", [ARTICLE, *ODD])
def test_an_article_is_its_tokens_and_no_level_of_any_concept_crashes(text):
    document = parse(text)
    assert document.join(document.tokens) == text
    for level in (MIDDLE, STRONG):
        for name in CATALOGUE:
            assert isinstance(change(text, **{name: level[name]}), str)
        assert isinstance(change(text, **level), str)
    assert " ".join(sentences(text)).split() == text.split()


@pytest.mark.parametrize("name", sorted(set(CATALOGUE) - {"letter_case", "negate", "shuffle_sentences", "synonyms"}))
def test_draws_follow_from_seed_item_and_repeat(name):
    usual, again, *others = (
        change(ARTICLE, **{name: MIDDLE[name]}, **other)
        for other in ({}, {}, {"seed": 1}, {"item": "a2"}, {"repeat": 1})
    )
    assert usual == again and len({usual, *others}) == 4


REWRITING = ["number", "synonyms", "misspellings", "typos", "swap_characters", "insert_characters", "repeat_characters"]


@pytest.mark.parametrize("name", [*REWRITING, "tense"])
def test_a_stronger_level_rewrites_the_words_of_a_weaker_one_and_more(name):
    touched = [differing(ARTICLE, change(ARTICLE, **{name: level})) for level in (0.05, 0.2, 0.5, 0.8, 1)]
    assert all(weak <= strong for weak, strong in pairwise(touched)) and len(touched[0]) < len(touched[-1])


LEAVING_OUT = ["drop_stop_words", "drop_adjectives", "drop_verbs", "drop_nouns", "delete_words", "delete_characters"]


@pytest.mark.parametrize("name", LEAVING_OUT)
def test_a_stronger_level_leaves_out_what_a_weaker_one_does_and_more(name):
    unit = list if name == "delete_characters" else words
    left = [unit(change(ARTICLE, **{name: level})) for level in (0.0, 0.05, 0.2, 0.5, 0.8, 1)]
    assert all(is_subsequence(strong, weak) for weak, strong in pairwise(left))
    assert len(left[-1]) < len(left[2]) < len(left[0])


@pytest.mark.parametrize("name", ["delete_words", "drop_nouns", "drop_verbs", "drop_adjectives", "drop_stop_words"])
def test_what_is_left_out_leaves_no_double_spaces_and_no_hanging_marks(name):
    for repeat in range(20):
        text = change(ARTICLE.replace("  ", " "), repeat=repeat, **{name: 0.6})
        assert not re.search(r"  | [,.;:!?)]|\( |,[,.;]|\(\)|^[,.;]|[.!?] [,;]", text), text


# What each of them does; docs/text-concepts.md has an example of each


@pytest.mark.parametrize(
    ("sentence", "negated"),
    [
        ("In May he may have been ill.", "In May he may not have been ill."),
        ("I won't stay, he said.", "I will stay, he said."),
        ("She cannot go.", "She can go."),
        ("He did the work.", "He did not do the work."),
        ("There were no fires.", "There were fires."),
        ("He said no one came.", "He did not say no one came."),
        ("They do n't know it .", "They do know it ."),  # as the Penn Treebank splits words,
        ("A loud noise.", "A loud noise."),
    ],
)
def test_negation_finds_the_main_verb_and_takes_a_negation_away(sentence, negated):
    assert change(sentence, negate=1) == negated


def test_numbers_and_names_are_protected_where_the_concept_says_so():
    text = "Six dogs met 1,000 Australians on the 72nd day at 4:00pm."
    for name in ("typos", "swap_characters", "insert_characters", "repeat_characters", "delete_words", "repeat_words"):
        assert {"Six", "1,000", "72nd", "4:00pm"} <= set(words(change(text, **{name: 1})))
    for name in ("misspellings", "synonyms", "number"):
        assert "Australians" in change(text, **{name: 1})


@pytest.mark.parametrize("share", [0.1, 0.5, 1])
def test_the_share_of_touched_words_is_the_level(share):
    text = "strong winds pushed huge flames through seven small towns while many people left their homes behind"
    plain = [word for word in text.split() if word != "seven"]
    assert len(differing(text, change(text, typos=share))) == round(share * len(plain))
    assert len(text.split()) - len(change(text, delete_words=share).split()) == round(share * len(plain))
    assert len(change(text, repeat_words=share).split()) - len(text.split()) == round(share * len(plain))
    spaces = text.count(" ")
    assert spaces - change(text, lost_spaces=share).count(" ") == round(share * spaces)


def test_sentences_are_cut_where_people_would():
    text = 'Mr. Smith of the U.S. left at 4.30. "Why?" he asked. J. K. Rowling stayed... and slept! The end\n\nNew part'
    assert sentences(text) == [
        "Mr. Smith of the U.S. left at 4.30.",
        '"Why?" he asked.',
        "J. K. Rowling stayed... and slept!",
        "The end",
        "New part",
    ]
    assert sentences(" \n") == []


def test_an_own_concept_is_a_rule_on_a_token():
    def initials(token):
        return [token.text[0] + "."] if token.tag == "NNP" else []

    digits = edit_letters(lambda c, chance, place: c.replace("o", "0"))
    catalogue = {
        **CATALOGUE,
        "initials": TextConcept("initials", "names cut short", apply=reword(initials)),
        "leet": TextConcept("leet", "letters as digits", apply=digits),
    }
    levels = {"initials": [0, 1], "leet": [0, 1]}
    assert check_text_concepts(levels, catalogue) == []
    transforms = TextTransforms(text_space(levels, catalogue), seed=0, catalogue=catalogue)
    assert transforms("Dogs met John Smith too.", "a1", np.array([1, 1])) == "D0gs met J. S. t00."


def test_the_examples_for_users_are_what_the_concepts_do():
    page = Path("docs/text-concepts.md").read_text("utf-8")
    text = re.search(r"The examples change this text: (.*)", page)[1]
    rows = re.findall(r"^\| `(\w+)` \|.*\| `(\S+)`: (.*) \|$", page, re.MULTILINE)
    assert [name for name, *_ in rows] == list(CATALOGUE)
    for name, level, example in rows:
        changed = change(text, **{name: level if CATALOGUE[name].choices else float(level)})
        assert changed == example or (name == "misspellings" and changed != text)  # codespell's list grows
