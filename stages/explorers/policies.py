"""Reads the policy that an explorer has learnt, of any kind."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
from safetensors.torch import load_file

from stages.concepts import ConceptSpace
from stages.errors import UsageError
from stages.explorers.env import Normaliser
from stages.explorers.policy import MIXTURE, FactoredPolicy, Mixture, Policy, ValuePolicy
from stages.explorers.proposer import AutoregressivePolicy

KINDS: tuple[type[Policy], ...] = (FactoredPolicy, ValuePolicy, AutoregressivePolicy)


def load_policy(folder: Path) -> Policy | None:
    """Read a policy written by `save_policy`; None if the explorer learnt none.

    Raises:
        UsageError: if the folder contains no readable policy.
    """
    try:
        description = json.loads((folder / "policy.json").read_text())
    except (FileNotFoundError, ValueError) as error:
        raise UsageError(f"{folder} holds no readable policy: {error}") from None
    if description.get("schema") != 1:
        raise UsageError(f"{folder} holds a policy of schema {description.get('schema')}, this version reads 1")
    algorithm = description["algorithm"]
    if algorithm is None:
        return None
    if algorithm == MIXTURE:
        members = [load_policy(folder / str(n)) for n in range(1, description["members"] + 1)]
        return Mixture([member for member in members if member is not None])
    kinds = {name: kind for kind in KINDS for name in kind.algorithms}
    if algorithm not in kinds:
        raise UsageError(f"{folder} holds a policy learnt by {algorithm!r}, this version reads {', '.join(kinds)}")
    space = ConceptSpace.from_json(description["concepts"])
    normaliser = Normaliser(np.array(description["mean"]), np.array(description["std"]))
    kind, architecture = kinds[algorithm], description["architecture"]
    network = kind.build(algorithm, len(normaliser.mean), space, architecture)
    network.load_state_dict(load_file(folder / "policy.safetensors"))
    return kind(algorithm, network, normaliser, space, architecture)
