"""The blocks `prepare:`, `discrepancy:` and the repair settings of an audit of tables."""

from __future__ import annotations

from typing import Any, Literal

from pydantic import Field

from stages.params import Strict
from stages.tasks.sources import ItemCounts


class PrepareConfig(Strict):
    """The `prepare:` block; `model` and `data` are checked by the loader named by one of their keys."""

    model: dict[str, Any]
    data: dict[str, Any]
    items: ItemCounts
    groups: dict[str, list[str]] = Field(
        default_factory=dict, description="columns by patterns ('worst *'): drift_worst is drift of the group worst"
    )


class DiscrepancyConfig(Strict):
    """The `discrepancy:` block: tanh(log(best other probability / true probability) / scale), from -1 to 1."""

    threshold: float = Field(0.0, gt=-1, lt=1, description="0: whatever is misclassified; below 0: near misses too")
    scale: float = Field(5.0, gt=0, description="log odds at which the discrepancy begins to saturate")


class RepairSettings(Strict):
    """How the model is refitted: on its own rows, those of the split repair, and changed copies of the latter."""

    method: Literal["risk-weighted"] = Field(description="cells drawn in proportion to severity x failure risk")
    copies: int = Field(4, ge=1, le=1000, description="changed copies of each repair row")
