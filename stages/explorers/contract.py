"""The contract of explorers, which spend a prober's budget."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Protocol

from stages.explorers.prober import Prober

if TYPE_CHECKING:
    from stages.explorers.policy import Policy


@dataclass(frozen=True)
class Found:
    """The results of an explorer besides its probes, which are in the prober.

    Args:
        policy: the policy it learnt, or None if it learns none.
        details: numbers for the metrics, for example gradient updates.
    """

    policy: Policy | None = None
    details: Mapping[str, Any] = field(default_factory=dict)


class Explorer(Protocol):
    """Chooses the next probes in batches, reproducibly by seed, until the prober's budget is spent."""

    name: str

    def explore(self, prober: Prober, seed: int) -> Found:
        """Spend the prober's budget."""
        ...
