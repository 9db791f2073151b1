"""The contract of explorers, which spend a prober's budget."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Generic, Protocol, TypeVar

from stages.explorers.prober import Prober
from stages.params import Strict

if TYPE_CHECKING:
    from stages.explorers.policy import Policy

S = TypeVar("S", bound=Strict)


@dataclass(frozen=True)
class ExplorerResult:
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

    def explore(self, prober: Prober, seed: int) -> ExplorerResult:
        """Spend the prober's budget."""
        ...


class NoSettings(Strict):
    """Takes no settings."""


class Configured(Generic[S]):
    """What built-in explorers have in common: a name, and settings that all have defaults."""

    name: str
    Settings: type[S]

    def __init__(self, settings: S | None = None) -> None:
        self.settings = settings if settings is not None else self.Settings()
