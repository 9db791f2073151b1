# ruff: noqa: RUF001  # characters that look like others are what this file is about
"""Names of reviewers: which are valid, when two are one person's, and when one only looks like another."""

import re
import unicodedata
from collections.abc import Iterable

from stages.core.errors import UsageError

NOBODY = "nobody"  # the reviewer of a rejection by time-out
MAX_NAME = 200  # characters

# Control, format (zero width, bidi), surrogate, private use, unassigned, and separators other than spaces.
_REFUSED = {"Cc", "Cf", "Cs", "Co", "Cn", "Zl", "Zp"}
# These are invisible too, though Unicode classifies them as letters, marks and symbols.
_INVISIBLE = re.compile(
    r"[\u034f\u115f\u1160\u17b4\u17b5\u180b-\u180f\u2800\u3164\ufe00-\ufe0f\uffa0\U000e0100-\U000e01ef]"
)
_WRITTEN_TOGETHER = {"HIRAGANA", "KATAKANA", "KATAKANA-HIRAGANA", "HANGUL", "BOPOMOFO", "IDEOGRAPHIC"}

# Characters that look like an ASCII letter or digit, in the scripts that names are written in: from the confusables of
# Unicode's technical standard 39, and the letters with a stroke. "l" also stands for I and 1, and "o" for 0.
_LOOKS_LIKE = {
    "2": "ƧϨᒿꙄꝚ",
    "3": "ƷȜЗӠⳌꝪꞫ",
    "4": "Ꮞ",
    "5": "Ƽ",
    "6": "бᏮⳒ",
    "7": "𐓒",
    "8": "Ȣȣ",
    "9": "ⳊꝮ",
    "a": "ɑΑαАаᎪᗅꓮ",
    "b": "ƄΒВЬᏏᏴᑲᖯᗷꓐꞴ",
    "c": "СсᏟᴄⲤⲥꓚꮯ𐐕𐐽",
    "d": "ĐđԁᎠᏧᑯᗞᗪꓒꓓ",
    "e": "ΕЕеҽᎬⴹꓰꬲ",
    "f": "ϜքᖴẝꓝꞘꞙꬵ",
    "g": "ƍɡԌցᏀᏳᶃꓖ",
    "h": "ĦħΗНһհᎻᏂᕼⲎꓧ",
    "j": "ͿϳЈјᎫᒍꓙꞲ",
    "k": "ΚКᏦᛕⲔꓗ",
    "l": "ıŁłƖǀɩɪΙιІіӀӏᎥᏞᒪᛁⲒⳐⵏꓡꓲꙇꭵ𐐛",
    "m": "ΜϺМᎷᗰᛖⲘꓟ",
    "n": "ΝոռⲚꓠ",
    "o": "ØøΟοσОоՕօჿᴏᴑⲞⲟⵔꓳꬽ𐐄𐐬𐓂𐓪",
    "p": "ΡρРрᏢᑭⲢⲣꓑ",
    "q": "ԛգզⵕ",
    "r": "ƦгᎡᏒᖇᴦⲅꓣꭇꭈꮁ𐒴",
    "s": "ƽЅѕՏᏕᏚꓢꜱꮪ𐐠𐑈",
    "t": "ŦŧΤТᎢⲦꓔ",
    "u": "ʋυՍսᑌᴜꓴꞟꭎꭒ𐓎𐓶",
    "v": "νѴѵᏙᐯᴠⴸꓦꮩ",
    "w": "ɯѡԜԝաᎳᏔᴡꓪꮃ",
    "x": "ΧХхᕁᕽᚷⲬⵝꓫꞳ",
    "y": "ɣʏΥγУуҮүყᎩᎽᶌỿⲨꓬꭚ",
    "z": "ΖᏃᴢꓜꮓ",
}
_PLAIN = {c: plain for plain, alike in _LOOKS_LIKE.items() for c in alike} | {"I": "l", "i": "l", "1": "l", "0": "o"}


def clean_name(text: str) -> str:
    """Normalise a reviewer's name for the record: NFKC, with single spaces.

    Raises a UsageError if it is empty, too long or without a letter or digit, has an invisible character, or mixes
    scripts within a word; the message names the character.
    """
    name = " ".join(unicodedata.normalize("NFKC", text.strip()).split(" ")).strip()
    for c in (*text.strip(), *name):
        if unicodedata.category(c) in _REFUSED or _INVISIBLE.match(c):
            raise UsageError(f"a reviewer's name cannot have {_character(c)}: expected characters that can be seen")
    name = " ".join(name.split())
    if not name:
        raise UsageError("a decision needs the reviewer's name, found none")
    if len(name) > MAX_NAME:
        raise UsageError(f"the reviewer's name has {len(name)} characters, expected at most {MAX_NAME}")
    if not any(c.isalnum() for c in name):
        raise UsageError(f"the reviewer's name {name!r} has neither a letter nor a digit")
    for word in re.split("[ -]", name):
        if len(scripts := {_script(c): c for c in word if unicodedata.category(c) in ("Lu", "Ll", "Lt", "Lo")}) > 1:
            found = " and ".join(_character(c) for c in scripts.values())
            raise UsageError(f"the reviewer's name {name!r} mixes scripts within a word: it has {found}")
    return name


def same_person(a: str, b: str) -> bool:
    """Whether two names are one reviewer's: they may differ in case and spaces."""
    return _folded(a) == _folded(b)


def look_alike(name: str, known: Iterable[str]) -> str | None:
    """Return the first known name that a name could be mistaken for, but that is not the same person's."""
    return next((k for k in known if not same_person(name, k) and skeleton(name) == skeleton(k)), None)


def skeleton(name: str) -> str:
    """Reduce a name so that names that look alike become equal: accents, case, punctuation, homoglyphs."""
    # Marks of class 0 are vowels, as in Devanagari, and are kept; the others are accents.
    kept = (c for c in unicodedata.normalize("NFKD", name) if c.isalnum() or unicodedata.category(c) in ("Mn", "Mc"))
    plain = "".join(_plain(c) for c in kept if not unicodedata.combining(c))
    return plain.replace("rn", "m").replace("vv", "w")


def _plain(c: str) -> str:
    if (digit := unicodedata.digit(c, None)) is not None:
        c = str(digit)
    folded = c.casefold()
    return _PLAIN.get(c) or _PLAIN.get(c.upper()) or _PLAIN.get(folded, folded)


def _folded(name: str) -> str:
    return " ".join(unicodedata.normalize("NFKC", name).casefold().split())


def _script(c: str) -> str:
    script = unicodedata.name(c, "UNKNOWN").split()[0]
    return "CJK" if script in _WRITTEN_TOGETHER else script


def _character(c: str) -> str:
    return f"U+{ord(c):04X} {unicodedata.name(c, 'a control, private or unassigned character')}"
