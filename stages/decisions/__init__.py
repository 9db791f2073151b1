"""People's decisions on a landscape: their content, their files, and how several are merged into one plan."""

from stages.decisions.files import (
    Standing,
    check_fits,
    decisions_dir,
    landscape_hash,
    listed_keys,
    read_chain,
    read_draft,
    record_decision,
    shown_examples,
    standing,
    valid_decisions,
)
from stages.decisions.identity import Identity, identity_of
from stages.decisions.merge import RULE, merge_decisions
from stages.decisions.model import (
    NO_HUMAN,
    SEVERITIES,
    Action,
    AlreadyDecided,
    Decision,
    ExampleRating,
    ModeDecision,
    RatedProbe,
    RecordedDecision,
    Via,
)
from stages.decisions.must_pass import read_must_pass

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
    "RecordedDecision",
    "Standing",
    "Via",
    "check_fits",
    "decisions_dir",
    "identity_of",
    "landscape_hash",
    "listed_keys",
    "merge_decisions",
    "read_chain",
    "read_draft",
    "read_must_pass",
    "record_decision",
    "shown_examples",
    "standing",
    "valid_decisions",
]
