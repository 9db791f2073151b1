"""Mining: find words, attributes and small combinations of them that fail, though no concept of the audit names them.

A language model's blind spots are rarely the ones somebody listed. Candidates come from the items themselves and from
a lexicon, and are confirmed on other items than those that proposed them. See docs/choosing-concepts.md.
"""
