"""Concepts of grammar: negation, tense and number, by rules on the parts of speech.

The rules cover English main clauses, not all of English: if a tag is wrong or a clause unusual, so is the change.
"""

from collections.abc import Sequence
from dataclasses import replace

from stages.concepts.texts.document import ArticleDraws, Token, by_sentence, remove
from stages.concepts.texts.lexicon import BE, DO, HAVE, MODALS, inflect, is_participle, lemma, word_set

_AUXILIARIES = BE | HAVE | DO | MODALS
_CLITICS = ("'re", "'ve", "'ll", "'m", "'d")  # as in "they're"; a "not" can follow them
_FINITE = ("MD", "VBD", "VBP", "VBZ")
_BEFORE_NOUNS = ("DT", "IN", "JJ", "PRP$", "TO")
_ARTICLES = word_set("a an the")
_RELATIVE = word_set("who whom which that whose")
_SUBORDINATORS = word_set("as while if when after before because since although though until unless once where whether")
_STEMS = {"ca": "can", "wo": "will", "sha": "shall"}  # as in "can't", "won't", "shan't"
_SUPPORT = {"VBD": "did", "VBZ": "does", "VBP": "do"}
_PLURAL_SUBJECTS = word_set("i you we they these those people police")
_TENSES = {
    **{"is": "was", "am": "was", "are": "were", "has": "had", "have": "had", "does": "did", "do": "did"},
    **{"will": "would", "can": "could", "may": "might", "would": "will", "could": "can", "might": "may"},
    **{"was": "is", "were": "are"},
}
_TIMES = word_set("today yesterday tomorrow tonight")  # tagged as nouns, but neither subjects nor countable


def _straight(token: Token) -> str:
    return token.lower.replace("\u2019", "'")


def _is_auxiliary(token: Token) -> bool:
    word = _straight(token)
    verb = token.tag.startswith(("VB", "MD")) and word in _AUXILIARIES  # excludes May and the will
    return verb or word == "cannot" or word.endswith(("n't", *_CLITICS))


def _previous(sentence: Sequence[Token], i: int) -> Token | None:
    """The word before token i, skipping adverbs; None after a mark or at the start."""
    i -= 1
    while i >= 0 and sentence[i].tag == "RB":
        i -= 1
    return sentence[i] if i >= 0 and sentence[i].tag else None


def _is_finite(sentence: Sequence[Token], i: int) -> bool:
    """Whether the token at i is a finite verb; the tagger mistakes some participles for one ("a stunned nation")."""
    verb, before = sentence[i], _previous(sentence, i)
    if before is not None and _is_auxiliary(before):
        return False  # "has forced", "will have"
    if before is not None and before.lower in _ARTICLES:
        return False  # "the will"
    if _is_auxiliary(verb):
        return verb.lower not in ("be", "been", "being", "having")
    modifies = before is not None and before.tag in _BEFORE_NOUNS and before.lower not in _RELATIVE
    return verb.tag in _FINITE and not modifies


def _main_verb(sentence: Sequence[Token]) -> int | None:
    """Return the index of the first finite verb outside relative and subordinate clauses, or else of the first one.

    Without any, it is a participle after a noun: the tagger misreads "police arrested two men" like that.
    """
    finite = [i for i in range(len(sentence)) if _is_finite(sentence, i)]
    if not finite:
        tags = [token.tag for token in sentence]
        finite = [i for i in range(1, len(tags)) if tags[i] == "VBN" and tags[i - 1].startswith(("NN", "PRP"))]
    subordinate = False
    for i, token in enumerate(sentence):
        if i in finite and not subordinate:
            return i
        if i in finite or token.text == ",":
            subordinate = False  # the verb of that clause, or its end
        elif token.lower in _RELATIVE | _SUBORDINATORS:
            subordinate = True
    return finite[0] if finite else None


def _has_participle(sentence: Sequence[Token], i: int) -> bool:
    """Whether "have" at i is an auxiliary of another verb: "has already left"."""
    later = (token for token in sentence[i + 1 : i + 4] if token.tag not in ("RB", "PRP", "DT"))
    return is_participle(next(later, sentence[i]).lower)


def _affirmed(verb: Token) -> Token:
    """The verb of a contraction without its "n't", written out: "ca" becomes "can"."""
    whole = _STEMS.get(verb.lower)
    if whole is None:
        return verb
    return replace(verb, text=whole if verb.text[0].islower() else whole.capitalize())


def _negated(sentence: list[Token], i: int) -> list[Token]:
    """Negate the sentence at its verb, or remove the negation if there is one."""
    for k in (i, i + 1):
        if k < len(sentence) and _straight(sentence[k]) == "n't":  # its own token, as in the Penn Treebank: "ca n't"
            return remove([_affirmed(token) if j == k - 1 else token for j, token in enumerate(sentence)], {k})
    verb, word = sentence[i], _straight(sentence[i])
    before, after = sentence[:i], sentence[i + 1 :]
    if word == "cannot":
        return [*before, replace(verb, text=verb.text[:3]), *after]
    if word.endswith("n't"):
        return [*before, _affirmed(replace(verb, text=verb.text[:-3])), *after]
    negations = ("not", "never", "no") if _is_auxiliary(verb) else ("not", "never")  # "said no one" negates no verb
    for k, token in enumerate(sentence[i + 1 : i + 4], start=i + 1):
        if token.lower in negations:
            longer = token.lower == "no" and sentence[k + 1 : k + 2] and sentence[k + 1].lower == "longer"
            return remove(sentence, {k, k + 1} if longer else {k})
        if token.tag not in ("RB", "PRP") and token.lower != "been":
            break
    helps = _has_participle(sentence, i) if word in HAVE else word not in DO or _helps_do(after)
    if _is_auxiliary(verb) and helps:
        return [*before, replace(verb, space=" "), replace(verb, text="not", tag="RB", stop=False), *after]
    support = _SUPPORT.get(verb.tag, "did")
    begin = i
    while begin > 1 and sentence[begin - 1].tag == "RB":
        begin -= 1  # "he quickly left" becomes "he did not quickly leave"
    return [
        *sentence[:begin],
        replace(verb, text=support if verb.text[0].islower() else support.capitalize(), space=" ", stop=True),
        replace(verb, text="not", space=" ", tag="RB", stop=False),
        *sentence[begin:i],
        replace(verb, text=lemma(verb.lower, "VB") or verb.lower, tag="VB"),
        *after,
    ]


def _helps_do(after: Sequence[Token]) -> bool:
    """Whether "do" is an auxiliary of a verb that follows: "does often go"."""
    return next((token.tag in ("VB", "VBP") for token in after[:3] if token.tag not in ("RB", "PRP")), False)


def negate(tokens: Sequence[Token], share: float, chance: ArticleDraws) -> list[Token]:
    """Turn a share of the sentences into their opposite: negate the main verb, or remove its negation."""
    groups = by_sentence(tokens)
    verbs = [(k, i) for k, group in enumerate(groups) if (i := _main_verb(group)) is not None]
    for chosen in chance.some([groups[k][i].start for k, i in verbs], share):
        k, i = verbs[chosen]
        groups[k] = _negated(groups[k], i)
    return [token for group in groups for token in group]


def _is_plural(noun: Token) -> bool:
    known = noun.tag in ("NNS", "NNPS") or noun.lower in _PLURAL_SUBJECTS
    return known or (noun.tag == "NN" and lemma(noun.lower, "NN") not in (None, noun.lower))  # gunmen


def _plural_subject(sentence: Sequence[Token], i: int) -> bool:
    """Whether the subject before a verb needs "are": the nearest noun or pronoun that no preposition governs."""
    plural: bool | None = None
    for token in reversed(sentence[:i]):
        if token.tag == "IN":
            plural = None
        elif plural is None and (token.tag.startswith(("NN", "PRP")) or token.lower in _PLURAL_SUBJECTS):
            plural = None if token.lower in _TIMES else _is_plural(token)
        elif plural is not None and (not token.tag or token.tag.startswith("VB")):
            break
    return bool(plural)


def _other_tense(sentence: Sequence[Token], i: int) -> str | None:
    """Return the verb at i in the other tense, past or present; None if it is not a finite verb."""
    verb, word = sentence[i], sentence[i].lower
    if not _is_finite(sentence, i) or verb.tag not in _FINITE:
        return None
    if word in _TENSES:
        return _TENSES[word]
    base = lemma(word, verb.tag) if verb.is_plain and verb.tag != "MD" else None
    if base is None:
        return None
    if verb.tag == "VBD":
        return inflect(base, "VBP" if _plural_subject(sentence, i) else "VBZ")
    return inflect(base, "VBD")


def tense(tokens: Sequence[Token], share: float, chance: ArticleDraws) -> list[Token]:
    """Put a share of the finite verbs into the other tense: past into present, and present into past."""
    eligible: list[tuple[int, str]] = []
    first = 0  # index of the sentence's first token
    for sentence in by_sentence(tokens):
        forms = ((first + i, _other_tense(sentence, i)) for i in range(len(sentence)))
        eligible += [(i, form) for i, form in forms if form and form != tokens[i].lower]
        first += len(sentence)
    changed = list(tokens)
    for chosen in chance.some([tokens[i].start for i, _ in eligible], share):
        i, form = eligible[chosen]
        changed[i] = replace(tokens[i], text=form if tokens[i].text[0].islower() else form.capitalize())
    return changed


def other_number(token: Token) -> Sequence[str]:
    """Return the plural of a singular noun or the singular of a plural one; nothing for names or if both are equal."""
    if not token.is_plain or token.tag not in ("NN", "NNS") or token.text in _TIMES:
        return ()
    base = lemma(token.text, token.tag)
    form = base and (base if token.tag == "NNS" else inflect(base, "NNS"))
    return (form,) if form and form != token.text else ()
