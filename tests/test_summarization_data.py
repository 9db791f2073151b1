"""Articles from files, packages and data sets: what is used, what is left out and why, and how splits are drawn."""

import json
import sys

import pytest

from stages.core.errors import UsageError
from stages.tasks.language.articles import DATA_LOADERS, Article, choose_items, trim
from stages.tasks.sources import ItemCounts, parse_source, source_errors
from tests.news import articles

GERMAN = "Der Bundestag hat am Donnerstag ein Gesetz beschlossen, das die Rechte der Mieter in den Städten stärkt."
PLAIN = "The minister said on Monday that the union had asked for more money, and that they would not be given any."


def source(**block):
    return parse_source(block, DATA_LOADERS, "prepare.data")


def write_lines(folder, lines, name="news.jsonl"):
    (folder / name).write_text("".join((x if isinstance(x, str) else json.dumps(x)) + "\n" for x in lines))


def load_lines(folder, lines, **settings):
    write_lines(folder, lines)
    return source(jsonl="news.jsonl", text="body", **settings).load(folder)


def reasons(folder, *texts):
    """Why texts are left out, next to usable articles."""
    _, skipped = load_lines(folder, [{"body": t} for t in [*articles(2), *texts]], max_excluded=1)
    return [entry["reason"] for entry in skipped]


def test_json_lines_with_references_and_splits(tmp_path):
    first, second = articles(2)
    lines = [{"body": first, "gist": "  Short  one. ", "part": "test"}]
    lines += [{"body": second, "gist": "", "part": "discover"}]
    taken, skipped = load_lines(tmp_path, lines, summary="gist", split="part")
    assert skipped == []
    assert taken == [Article("news-1", first, "Short one.", "test"), Article("news-2", second, "", "discover")]


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("Word.", "1 word, min_words is 30"),
        ("the of and to " * 40, "its first sentence has more than 100 words"),
        (f"\x00{PLAIN} {PLAIN}", "holds U+0000, so it is not plain text"),
        (f"{GERMAN} {GERMAN}", "not English: 0% of its words are English stop words, expected 10% or more"),
        (articles(1)[0] + " And there was one sentence more at its end.", "repeats news-1"),
    ],
)
def test_why_an_article_is_left_out(tmp_path, text, reason):
    assert reasons(tmp_path, text) == [reason]


def test_too_many_exclusions_are_an_error_that_names_the_first(tmp_path):
    lines = [{"body": text} for text in [*articles(6), "", GERMAN * 2, "Word."]]
    message = (
        r"3 of 9 articles cannot be used, max_excluded allows 20%: news-7 \(empty\);"
        r" news-8 \(not English.*\); news-9 \(1 word, min_words is 30\)$"
    )
    with pytest.raises(UsageError, match=message):
        load_lines(tmp_path, lines)
    taken, skipped = load_lines(tmp_path, lines, max_excluded=0.4)
    assert (len(taken), len(skipped)) == (6, 3)


def test_articles_are_cut_to_whole_sentences_and_it_is_told_which(tmp_path):
    text = "One two three. Four five! Mr. Six said: seven? Eight."
    assert trim(text, 5) == "One two three. Four five!" and trim(text, 8) == "One two three. Four five!"
    assert trim(text, 9) == "One two three. Four five! Mr. Six said: seven?" and trim(text, 99) == text
    assert trim(text, 2) == ""
    whole, long = articles(2)
    taken, _ = load_lines(tmp_path, [{"body": f" {whole}\n"}, {"body": f"{long} {long}"}])
    assert [a.cut for a in taken] == [False, True]
    items = choose_items(taken, ItemCounts(discover=2), 0).set_index("id")
    assert items["cut"].to_dict() == {"news-1": False, "news-2": True}


@pytest.fixture
def package(tmp_path, monkeypatch):
    """A package of two text files, one of them not UTF-8; importing it is an error."""
    home = tmp_path / "site" / "toy_news"
    home.mkdir(parents=True)
    (home / "__init__.py").write_text("raise RuntimeError('imported')")
    written = articles(9)
    (home / "many.cor").write_text("\n".join(written[:6]) + "\n\n")
    (home / "few.cor").write_bytes("\n".join(f"{text} It cost £5." for text in written[6:]).encode("latin-1"))
    monkeypatch.setattr(sys, "path", [str(tmp_path / "site"), *sys.path])
    return home


def test_articles_of_a_package(package, tmp_path):
    both = source(package="toy_news", file="many.cor", test="few.cor")
    assert both.errors(tmp_path) == []
    taken, skipped = both.load(tmp_path)
    assert skipped == []
    assert [a.id for a in taken] == [*(f"test-few-{i}" for i in (1, 2, 3)), *(f"many-{i}" for i in range(1, 7))]
    assert {a.pool for a in taken[:3]} == {"test"} and taken[0].text.endswith("It cost £5.")
    items = choose_items(taken, ItemCounts(discover=3, repair=3, test=3), seed=1)
    assert set(items.loc[items["split"] == "test", "id"]) == {"test-few-1", "test-few-2", "test-few-3"}
    # Two files of one name are told apart.
    (package / "held_out").mkdir()
    (package / "few.cor").rename(package / "held_out" / "many.cor")
    taken, _ = source(package="toy_news", file="many.cor", test="held_out/many.cor").load(tmp_path)
    assert len({a.id for a in taken}) == len(taken) == 9


@pytest.mark.parametrize(
    ("block", "message"),
    [
        ({"jsonl": "../a.jsonl", "text": "body"}, "put the file or a link to it there"),
        ({"jsonl": "there.jsonl"}, "prepare.data.text: missing"),
        ({"jsonl": "there.jsonl", "text": "b", "min_words": 200}, "min_words is 200, above max_words, 100"),
        ({"datasets": "there", "split": "a", "text": "b", "revision": "main"}, "what is on the hub has a revision"),
    ],
)
def test_bad_blocks(tmp_path, block, message):
    (tmp_path / "there.jsonl").touch()
    (tmp_path / "there").mkdir()
    errors = source_errors(block, DATA_LOADERS, "prepare.data", tmp_path)
    assert len(errors) == 1 and message in errors[0]
