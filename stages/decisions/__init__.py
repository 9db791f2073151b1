"""People's decisions on a landscape: their content, their files, and how several are merged into one plan."""

from stages.decisions.files import (
    Standing,
    decisions_dir,
    landscape_hash,
    listed_keys,
    read_chain,
    read_draft,
    record_decision,
    standing,
    valid_decisions,
)
from stages.decisions.identity import identity_of
from stages.decisions.merge import RULE, merge_decisions
from stages.decisions.model import (
    NO_HUMAN,
    SEVERITIES,
    Action,
    AlreadyDecided,
    Decision,
    ExampleRating,
    ModeDecision,
    RecordedDecision,
    Via,
)
from stages.decisions.must_pass import read_must_pass
