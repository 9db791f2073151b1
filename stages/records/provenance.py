"""Where results are from: what prepare found, the provenance beside all outputs, and the manifest of a bundle."""

from typing import Any, NotRequired, TypedDict

from pydantic import Field

from stages.records.base import FlatMetrics, JsonRecord
from stages.records.landscape import RatingsBound


class PrepareMetrics(FlatMetrics):
    """metrics.json of prepare: what it found out about the model and its data, and the task's own numbers."""

    @property
    def clean_accuracy(self) -> dict[str, float]:
        """Share of unchanged items that the model answers correctly, by split; empty if the task has no such share."""
        found = self.more.get("clean_accuracy")
        return dict(found) if isinstance(found, dict) else {}

    @property
    def classes(self) -> int:
        """The number of classes; 0 for tasks without."""
        return int(self.number("classes") or 0)

    @property
    def origins(self) -> tuple[str, str]:
        """Where the model is from, and the data; "" if that is unknown."""
        found = self.more.get("origin")
        origin = found if isinstance(found, dict) else {}
        return str(origin.get("model", "")), str(origin.get("data", ""))


class Provenance(JsonRecord):
    """provenance.json, without entries that are unknown or unused by the stage."""

    audit: str
    seed: int
    task: str
    python: str
    platform: str
    versions: dict[str, str]
    git: dict[str, Any] | None = None  # of runs by Faded 0.2.0 and before; now dvc.lock names the code
    device: str | None = None
    backend: str | None = None
    backend_auto: str | None = None  # of prepare: why `auto` means this backend
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
        """The backend for people, with the reason if `auto` chose it."""
        return f"{self.backend} (auto: {self.backend_auto})" if self.backend_auto else str(self.backend)

    def of_model(self) -> dict[str, Any]:
        """Return the entries on model, data and computation, for stages that do not run the model themselves."""
        told = ("versions", "device", "backend", "dtype", "threads", "batch_size", "model", "data", "repaired")
        return {key: value for key, value in self.to_json().items() if key in told}


# The manifest of an evidence bundle (flows/evidence): plain data, not records, because it can list a hundred thousand
# files, and is untrusted until all of it was checked.


class ManifestFile(TypedDict):
    """One file: its size in bytes, and its hashes in hex; `whole`: the bundle contains it."""

    size: int
    md5: str
    sha256: NotRequired[str]
    whole: bool


class Revision(TypedDict):
    """The git revision of the bundle, and whether code or parameters differed from it."""

    revision: str | None
    dirty: bool | None


Parts = dict[str, dict[str, ManifestFile]]


class Manifest(TypedDict):
    """The provenance of the last stage, and all files of an audit by the part they belong to."""

    schema: int
    audit: str
    passed: bool | None
    landscape: str
    hashes: dict[str, str]
    seed: int
    task: str
    device: str | None
    backend: str | None
    dtype: str | None
    threads: int | None
    batch_size: int | None
    python: str
    platform: str
    versions: dict[str, str]
    git: Revision
    parts: Parts
