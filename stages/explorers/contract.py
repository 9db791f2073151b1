"""The explorer contract: given a prober, spend its budget well."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Protocol

from stages.explorers.prober import Prober

if TYPE_CHECKING:
    from stages.explorers.policy import Policy


@dataclass(frozen=True)
class Found:
    """What an explorer leaves behind beside its probes, which the prober holds.

    Args:
        policy: what it has learnt, or None if it learns nothing.
        details: numbers for the metrics, e.g. gradient updates.
    """

    policy: Policy | None = None
    details: Mapping[str, Any] = field(default_factory=dict)


class Explorer(Protocol):
    """Chooses the next probes. Seeded, in batches, and it stops when the prober's budget is spent."""

    name: str

    def explore(self, prober: Prober, seed: int) -> Found:
        """Spend the prober's budget."""
        ...
