"""The files of an audit's records, data/<audit>/<stage>/<file>, read when first needed."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Generic, Self, TypeVar, get_type_hints, overload

from stages.code import read_stages
from stages.core.files import publishing
from stages.params import DATA
from stages.records.base import FlatMetrics, JsonRecord, read_bytes_of
from stages.records.landscape import Landscape, Verdict
from stages.records.provenance import PrepareMetrics, Provenance
from stages.records.repair import Comparison, Plan, RepairVerdict, Trainings
from stages.records.search import DiscoverMetrics, ReEvaluateMetrics
from stages.records.tables import (
    PROBES,
    Embedded,
    ModelTallies,
    PairedProbe,
    ShownExample,
    Tallies,
    read_compared,
    read_embedded,
    read_exhibits,
    read_parquet,
    read_sheets,
    write_compared,
    write_embedded,
    write_exhibits,
    write_sheets,
)
from stages.tasks.contract import Sheet

if TYPE_CHECKING:
    import pandas as pd

T = TypeVar("T")
R = TypeVar("R", bound=JsonRecord)
Reader = Callable[[Path], bytes]
_HOME = "data/${key}/"  # of an audit's files in the graph


class RecordFile(Generic[T]):
    """A file of a stage's folder as an attribute: read once when first accessed, and written when assigned."""

    def __init__(self, file: str, read: Callable[[bytes | Path, str], T], write: Callable[[Path, T], object]) -> None:
        self.file, self._read, self._write = file, read, write

    def __set_name__(self, owner: type, name: str) -> None:
        self._name = name

    @overload
    def __get__(self, folder: None, owner: type) -> Self: ...
    @overload
    def __get__(self, folder: StageFolder, owner: type) -> T: ...
    def __get__(self, folder: StageFolder | None, owner: type) -> Self | T:
        if folder is None:
            return self
        if self._name not in folder.known:
            path = folder.path / self.file
            data: bytes | Path = path if folder.reader is None else folder.reader(path)
            folder.known[self._name] = self._read(data, path.as_posix())
        value: T = folder.known[self._name]
        return value

    def __set__(self, folder: StageFolder, value: T) -> None:
        self._write(folder.path / self.file, value)
        folder.known[self._name] = value


def _record(file: str, kind: type[R]) -> RecordFile[R]:
    def read(data: bytes | Path, where: str) -> R:
        return kind.parse(data if isinstance(data, bytes) else read_bytes_of(data), where)

    return RecordFile(file, read, lambda path, value: path.write_bytes(value.dump()))


def _table(file: str, columns: Sequence[str] = ()) -> RecordFile[pd.DataFrame]:
    return RecordFile(
        file,
        lambda data, where: read_parquet(data, where, columns),
        lambda path, table: table.to_parquet(path, index=False),
    )


def _text(file: str) -> RecordFile[str]:
    def read(data: bytes | Path, where: str) -> str:
        return (data if isinstance(data, bytes) else read_bytes_of(data)).decode("utf-8")

    return RecordFile(file, read, lambda path, text: path.write_text(text, encoding="utf-8"))


class StageFolder:
    """The folder of one stage.

    Args:
        reader: returns the bytes of a file; by default files are read from disk.
    """

    provenance = _record("provenance.json", Provenance)

    def __init__(self, path: Path, reader: Reader | None = None) -> None:
        self.path, self.reader = path, reader
        self.known: dict[str, Any] = {}

    @classmethod
    def files(cls) -> dict[str, str]:
        """Return the names of all files that are records, by attribute."""
        kinds = reversed(cls.__mro__)
        return {name: at.file for kind in kinds for name, at in vars(kind).items() if isinstance(at, RecordFile)}

    def where(self, name: str) -> Path:
        return self.path / self.files()[name]

    def has(self, name: str) -> bool:
        return self.where(name).exists()

    @property
    def inputs(self) -> list[Path]:
        """The files and folders of other stages that this one reads, as the graph of stages lists them."""
        stages = read_stages()
        listed = [dep.removeprefix(_HOME) for dep in stages[self.path.name]["do"]["deps"]]
        return [self.path.parent / dep for dep in listed if dep.partition("/")[0] in stages]

    @contextlib.contextmanager
    def publish(self, record: Mapping[str, Any], more: Iterable[Path] = ()) -> Iterator[Self]:
        """Yield a folder to write to, which replaces this one when the block ends without an error.

        Args:
            record: the result of `stages.provenance.provenance`, written last with the hashes of the files.
            more: what this stage read besides its `inputs`.
        """
        from stages.provenance import write_provenance

        with publishing(self.path) as partial:
            yield type(self)(partial)
            write_provenance(partial, record, [*self.inputs, *more])


class Prepare(StageFolder):
    """The model under test and its items in standard form; all other files here are the task's own."""

    metrics = _record("metrics.json", PrepareMetrics)


class Discover(StageFolder):
    """The answers of the model under test."""

    probes = _table("probes.parquet", PROBES)
    robustness = _table("robustness.parquet")
    embedded = RecordFile[Embedded]("embeddings.parquet", read_embedded, write_embedded)
    tallies = _record("tallies.json", Tallies)
    sheets = RecordFile[Mapping[str, Sequence[Sheet]]]("sheets.parquet", read_sheets, write_sheets)
    metrics = _record("metrics.json", DiscoverMetrics)


class Summarize(StageFolder):
    """The landscape. A decision is bound to the hash of `landscape` and `cells`."""

    cells = _table("landscape.parquet")
    landscape = _record("landscape.json", Landscape)
    fresh = _table("fresh.parquet", (*PROBES, "mode"))
    exhibits = RecordFile[Mapping[str, Sequence[ShownExample]]]("exhibits.parquet", read_exhibits, write_exhibits)
    extremes = RecordFile[Mapping[str, Sequence[ShownExample]]]("extremes.parquet", read_exhibits, write_exhibits)


class Report(StageFolder):
    """The verdict on a landscape, and its report."""

    verdict = _record("verdict.json", Verdict)
    metrics = _record("metrics.json", FlatMetrics)
    headline = _record("headline.json", FlatMetrics)
    page = _text("report.html")


class CollectFeedback(StageFolder):
    """The decision of people, or of a rule."""

    plan = _record("plan.json", Plan)
    metrics = _record("metrics.json", FlatMetrics)


class Restructure(StageFolder):
    """The repaired model and its control, and their further trainings."""

    trainings = _record("trainings.json", Trainings)
    metrics = _record("metrics.json", FlatMetrics)


class ReEvaluate(StageFolder):
    """The answers of the models before and after, of the control and, for the noise, of the one before again."""

    probes = _table("probes.parquet", (*PROBES, "model", "purpose"))
    metrics = _record("metrics.json", ReEvaluateMetrics)
    embedded = RecordFile[Embedded]("embeddings.parquet", read_embedded, write_embedded)
    policies = _table("policies.parquet", ("model", "item"))  # and one column per concept
    quality = _table("quality.parquet", ("name", "model", "item", "value"))
    measures = _table("measures.parquet", ("part", "kind", "name"))  # and one column per measure
    tallies = _record("tallies.json", ModelTallies)
    sheets = RecordFile[Mapping[str, Sequence[Sheet]]]("sheets.parquet", read_sheets, write_sheets)
    examples = RecordFile[Mapping[str, Sequence[PairedProbe]]]("examples.parquet", read_compared, write_compared)
    doses = _table(
        "doses.parquet",
        ("copy_of", "training", "dose", "share", "steps", "published", "part", "item", "weight", "value", "valid"),
    )


class Compare(StageFolder):
    """The comparison of before and after."""

    comparison = _record("comparison.json", Comparison)
    cells = _table("landscapes.parquet")


class Conclude(StageFolder):
    """The verdict on a repair, its report, and the card of the repaired model."""

    verdict = _record("verdict.json", RepairVerdict)
    metrics = _record("metrics.json", FlatMetrics)
    headline = _record("headline.json", FlatMetrics)
    page = _text("report.html")
    card = _text("model_card.md")


@dataclass(frozen=True)
class AuditFolder:
    """The records of one audit by stage, each read when first accessed."""

    path: Path
    prepare: Prepare
    discover: Discover
    summarize: Summarize
    report: Report
    collect_feedback: CollectFeedback
    restructure: Restructure
    re_evaluate: ReEvaluate
    compare: Compare
    conclude: Conclude

    @property
    def stages(self) -> dict[str, StageFolder]:
        """The folders by stage name, in the order of the graph."""
        return {name: part for name, part in vars(self).items() if isinstance(part, StageFolder)}


def audit_folder(name: str, root: Path = Path(), read: Reader | None = None) -> AuditFolder:
    """Return the records of an audit.

    Args:
        read: returns the bytes of a file by its path, to read records from other places (a git revision, a bundle); by
            default files are read from disk.
    """
    path = root / DATA / name
    kinds = get_type_hints(AuditFolder)
    folders: dict[str, Any] = {stage: kind(path / stage, read) for stage, kind in kinds.items() if stage != "path"}
    return AuditFolder(path, **folders)
