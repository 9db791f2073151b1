"""Records of what was asked: by whom, how often, and how far items can be changed before the model fails."""

from __future__ import annotations

from stages.records.base import Metrics, OpenRecord, Record


class Search(OpenRecord):
    """What one role of a search spent and found, and what its explorer adds."""

    explorer: str
    budget: int
    probes: int
    failures: int
    failure_rate: float
    failing_cells: int

    @property
    def chosen(self) -> str | None:
        """Which explorer `auto` took; None where the user named one."""
        return self.text("chosen")

    @property
    def why(self) -> str | None:
        """Why it took that one."""
        return self.text("why")


class Searches(Record):
    """Both roles of a search; an enumerated grid has no agent."""

    agent: Search | None = None
    control: Search | None = None

    @property
    def roles(self) -> dict[str, Search]:
        """Those that searched."""
        return {role: found for role, found in (("agent", self.agent), ("control", self.control)) if found is not None}


class ModelSearches(Searches):
    """The same of one model of a comparison; `enumerated`: all pairs were asked."""

    enumerated: bool


class Gradient(Record):
    """Which attacks along the gradient were tried, with which epsilons; `steps` of pgd."""

    attacks: list[str]
    epsilons: list[float]
    steps: int


class Walks(OpenRecord):
    """What microscopic exploration spent and found, and what its method adds."""

    method: str
    budget: int = 0
    probes: int = 0
    items: int
    fail_unchanged: int = 0
    found: int = 0
    not_found: int = 0
    longest: int = 0
    gradient: Gradient | None = None


class DiscoverMetrics(Metrics):
    """metrics.json of discover."""

    agent: Search | None = None
    control: Search | None = None
    microscopic: Walks
    enumerated: bool

    @property
    def searches(self) -> Searches:
        """Both roles."""
        return Searches(**{role: getattr(self, role) for role in ("agent", "control") if getattr(self, role)})


class ReEvaluateMetrics(Metrics):
    """metrics.json of re_evaluate: the searches on the model before and after."""

    before: ModelSearches
    after: ModelSearches
