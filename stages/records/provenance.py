"""Where a result comes from, as every stage writes it beside its outputs; see `stages.provenance`."""

from __future__ import annotations

from typing import Any

from pydantic import Field

from stages.records.base import Document, Record
from stages.records.landscape import RatingsBound


class Git(Record):
    """The revision, and whether code or parameters differed from it."""

    revision: str | None
    dirty: bool | None


class Provenance(Document):
    """provenance.json: what a stage does not know, or does not use, is left out."""

    audit: str
    seed: int
    task: str
    python: str
    platform: str
    versions: dict[str, str]
    git: Git
    device: str | None = None
    backend: str | None = None
    backend_auto: str | None = None  # of prepare: why `auto` stands for this backend
    dtype: str | None = None
    threads: int | None = None
    batch_size: int | None = None
    plugins: dict[str, str] | None = None
    ratings: RatingsBound | None = None
    model: str | None = None
    data: str | None = None
    repaired: str | None = None
    plan: str | None = None
    decisions: dict[str, str] | None = None
    read: dict[str, str] = Field(default_factory=dict)
    wrote: dict[str, str] = Field(default_factory=dict)

    @property
    def backend_said(self) -> str:
        """The backend for people, and why `auto` stands for it."""
        return f"{self.backend} (auto: {self.backend_auto})" if self.backend_auto else str(self.backend)

    def of_model(self) -> dict[str, Any]:
        """What a stage that asks no model takes from the one that did: which model, and where it computed."""
        told = ("device", "backend", "dtype", "threads", "batch_size", "model", "data", "repaired")
        return {key: value for key, value in self.to_json().items() if key in told}


class Share(Provenance):
    """share.json: the provenance of one share of a divided search, without git, as no answer depends on that."""

    git: Git | None = None  # type: ignore[assignment]
    origin: dict[str, str]
    part: int
