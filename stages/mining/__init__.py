"""Mining: words and attributes that no concept of an audit names, and the smallest combinations of them that fail.

A language model's blind spots are rarely those that somebody listed. Candidates come from the items themselves and
from a lexicon; what looks bad on some items has to hold on others. See docs/mining.md. Importing its
records does not import what measures.
"""

from stages.mining.record import Contrast, Example, Finding, MineSettings, Mining

__all__ = ["Contrast", "Example", "Finding", "MineSettings", "Mining"]
