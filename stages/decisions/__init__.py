"""People's decisions on a landscape: their content, their files, and how several are merged into one plan."""

from stages.decisions.files import (
    Standing,
    check_fits,
    counting,
    decisions_dir,
    landscape_hash,
    listed_keys,
    read_chain,
    read_draft,
    record_decision,
    shown_examples,
    standing,
)
from stages.decisions.identity import Identity, identity_of
from stages.decisions.merge import RULE, merge
from stages.decisions.model import (
    NO_HUMAN,
    SEVERITIES,
    Action,
    AlreadyDecided,
    Decision,
    ExampleRating,
    ModeDecision,
    RatedProbe,
    Recorded,
    Via,
)

__all__ = [
    "NO_HUMAN",
    "RULE",
    "SEVERITIES",
    "Action",
    "AlreadyDecided",
    "Decision",
    "ExampleRating",
    "Identity",
    "ModeDecision",
    "RatedProbe",
    "Recorded",
    "Standing",
    "Via",
    "check_fits",
    "counting",
    "decisions_dir",
    "identity_of",
    "landscape_hash",
    "listed_keys",
    "merge",
    "read_chain",
    "read_draft",
    "record_decision",
    "shown_examples",
    "standing",
]
