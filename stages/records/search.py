"""Records of searches and their cost, and of the search for the smallest failing changes."""

from stages.records.base import Metrics, OpenRecord, Record


class Search(OpenRecord):
    """The cost and results of one role of a search, and its explorer's own numbers."""

    explorer: str
    budget: int
    probes: int
    failures: int
    failure_rate: float
    failing_cells: int

    @property
    def chosen(self) -> str | None:
        """The explorer that `auto` chose; None if the user named one."""
        return self.text("chosen")

    @property
    def why(self) -> str | None:
        return self.text("why")


class Searches(Record):
    """Both roles of a search; an enumerated grid has no agent."""

    agent: Search | None = None
    control: Search | None = None

    @property
    def roles(self) -> dict[str, Search]:
        return {role: found for role, found in (("agent", self.agent), ("control", self.control)) if found is not None}


class ModelSearches(Searches):
    """The searches on one model of a comparison; `enumerated`: all pairs were probed."""

    enumerated: bool


class Gradient(Record):
    """The attacks along the gradient, their epsilons, and the `steps` of pgd."""

    attacks: list[str]
    epsilons: list[float]
    steps: int


class Walks(OpenRecord):
    """The cost and results of microscopic exploration, and its method's own numbers."""

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
        return Searches(**{role: getattr(self, role) for role in ("agent", "control") if getattr(self, role)})


class ReEvaluateMetrics(Metrics):
    """metrics.json of re_evaluate: the searches on the model before and after."""

    before: ModelSearches
    after: ModelSearches
