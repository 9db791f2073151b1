"""The private keys of reviewers on this machine, and the choice of the one that signs a decision.

Public keys are listed in params.yaml (`repairs.AUDIT.feedback.keys`, `faded reviewers`). What a signature covers, and
how it is verified, is in `stages.decisions.identity`.
"""

from __future__ import annotations

from typing import Any, NamedTuple

from stages.core.errors import UsageError
from stages.core.keys import has_key, key_path, private_key
from stages.decisions import listed_keys, read_chain
from stages.decisions.files import refuse_alike
from stages.decisions.identity import key_id_of, public_line
from stages.decisions.names import clean_name, same_person
from stages.params import Params


class Signer(NamedTuple):
    """The person who decides.

    Args:
        name: the name as listed, or as typed if no keys are listed.
        key: the private key that signs; None if no keys are listed.
    """

    name: str
    key: Any


def key_name(reviewer: str) -> str:
    """The name of a reviewer's key in `stages.core.keys`."""
    return f"reviewer {reviewer}"


def signer(params: Params, audit: str, reviewer: str) -> Signer:
    """The person who decides under a name, with the key that signs for them.

    Raises:
        UsageError: if the name is invalid; if keys are listed, also if none is listed for it, or this machine does not
            have the private key.
    """
    name, keys = clean_name(reviewer), listed_keys(params, audit)
    if not keys:
        refuse_alike(name, read_chain(audit), keys)
        return Signer(name, None)
    listed = next((known for known in keys if same_person(known, name)), None)
    if listed is None:
        raise UsageError(
            f"decisions on {audit} are signed, and no key of {name!r} is listed (repairs.{audit}.feedback.keys has"
            f" {', '.join(keys)}): say --reviewer NAME, or list yours first, `faded reviewers add '{name}'`"
        )
    if not has_key(key_name(listed)):
        raise UsageError(
            f"the private key of {listed!r} is not on this machine ({key_path(key_name(listed))} is missing): decide"
            " where it is, and commit the decision there"
        )
    key = private_key(key_name(listed))
    if (line := public_line(key)) != keys[listed]:
        raise UsageError(
            f"the key of {listed!r} on this machine is {key_id_of(line)}, params.yaml lists {key_id_of(keys[listed])}:"
            f" decide where that one is, or list this one: `faded reviewers remove '{listed}'`, then `add`"
        )
    return Signer(listed, key)
