"""The ledger: the append-only record of all answered probes of a run.

It has one line per batch, sealed with a checksum and flushed to disk before the explorer sees the answers. A line that
was cut short, damaged, or belongs to another ledger is put aside on reading, so a batch is recorded whole or not at
all. An explorer that starts again with the same seed asks the same questions in the same batches; known answers come
from the ledger, and only the others query the model. So a resumed run equals an uninterrupted one, whatever happened
to the file.
"""

import itertools
import os
import sys
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import IO, Annotated, NamedTuple

import numpy as np
from pydantic import BaseModel, ConfigDict, Field, FiniteFloat

from stages.core.files import put_aside, replace_file, seal, unseal


class Answer(NamedTuple):
    """The recorded answer to one probe; with people's ratings, also the automatic measure's discrepancy and failure."""

    discrepancy: float
    failed: bool
    output: str
    valid: bool = True
    automatic: float | None = None
    automatic_failed: bool | None = None


class Key(NamedTuple):
    """The identity of a probe."""

    item: str
    cell: int  # its number in the grid, see ConceptSpace.flat
    repeat: int = 0


class _Batch(BaseModel):
    """One line: columns of equal length."""

    model_config = ConfigDict(strict=True, extra="forbid")

    items: list[str]
    cells: list[Annotated[int, Field(ge=0)]]
    repeats: list[Annotated[int, Field(ge=0)]]
    discrepancy: list[FiniteFloat]
    failed: list[bool]
    outputs: list[str]
    valid: list[bool]
    automatic: list[FiniteFloat] | None = None
    automatic_failed: list[bool] | None = None

    def answers(self) -> Iterator[tuple[Key, Answer]]:
        """Yield its probes and answers; raises ValueError if columns differ in length."""
        own = [column for column in (self.automatic, self.automatic_failed) if column is not None]
        keys = itertools.starmap(Key, zip(self.items, self.cells, self.repeats, strict=True))
        answers = zip(self.discrepancy, self.failed, self.outputs, self.valid, *own, strict=True)
        return zip(keys, itertools.starmap(Answer, answers), strict=True)


class Ledger:
    """Answered probes in memory, backed by an append-only file.

    Args:
        path: the file, created if missing; None keeps the ledger in memory only.
    """

    def __init__(self, path: Path | None = None) -> None:
        self.path = path
        self._answers: dict[Key, Answer] = {}
        self._file: IO[bytes] | None = None
        self.resumed = 0
        if path is not None:
            self._open(path)

    def _open(self, path: Path) -> None:
        path.parent.mkdir(parents=True, exist_ok=True)
        if path.is_file():
            self._read(path)
        elif path.exists():
            put_aside(path)
        self.resumed = len(self._answers)
        self._file = path.open("ab")

    def _read(self, path: Path) -> None:
        good: list[bytes] = []
        damaged: list[bytes] = []
        with path.open("rb") as file:
            for line in file:
                (good if self._take(path, line) else damaged).append(line)
        if not damaged:
            return
        if damaged[-1].endswith(b"\n") or len(damaged) > 1:  # a line cut short by a kill is normal
            aside = path.with_name(f"{path.name}.damaged")
            with aside.open("ab") as file:
                file.writelines(damaged)
            print(f"{path}: {len(damaged):,} damaged line(s) set aside in {aside}, probing again", file=sys.stderr)
        replace_file(path, b"".join(good))

    def _take(self, path: Path, line: bytes) -> bool:
        """Add a line's answers, if it is undamaged, was written to this file and contains only new probes."""
        try:
            batch = _Batch.model_validate_json(unseal(path, line) or b"")
            answers = dict(batch.answers())
        except ValueError:  # raised by pydantic, or for columns that differ in length
            return False
        if len(answers) < len(batch.items) or not self._answers.keys().isdisjoint(answers):
            return False
        self._answers.update(answers)
        return True

    def __len__(self) -> int:
        return len(self._answers)

    def __contains__(self, key: Key) -> bool:
        return key in self._answers

    def __getitem__(self, key: Key) -> Answer:
        return self._answers[key]

    def append(
        self,
        keys: Sequence[Key],
        discrepancy: np.ndarray,
        failed: np.ndarray,
        outputs: Sequence[str],
        valid: np.ndarray | None = None,
        automatic: tuple[np.ndarray, np.ndarray] | None = None,
    ) -> None:
        """Record a batch of answers; it is on disk when this returns.

        Args:
            keys: the n probes.
            discrepancy: (n,).
            failed: (n,) bool.
            outputs: n outputs.
            valid: (n,) bool; None if all are valid.
            automatic: discrepancy and failed by the automatic measure, if people's ratings changed them.
        """
        if valid is None:
            valid = np.ones(len(keys), dtype=bool)
        lengths = {len(keys), len(discrepancy), len(failed), len(outputs), len(valid), *map(len, automatic or ())}
        if len(lengths) > 1:  # checked first: an unreadable line would stay forever
            raise ValueError(f"a batch of {len(keys)} probes was answered by columns of lengths {sorted(lengths)}")
        batch = _Batch(
            items=[k.item for k in keys],
            cells=[int(k.cell) for k in keys],
            repeats=[int(k.repeat) for k in keys],
            discrepancy=[float(x) for x in discrepancy],
            failed=[bool(x) for x in failed],
            # An endpoint may return half a surrogate pair, which UTF-8 cannot encode.
            outputs=[output.encode("utf-8", "replace").decode() for output in outputs],
            valid=[bool(x) for x in valid],
            automatic=None if automatic is None else [float(x) for x in automatic[0]],
            automatic_failed=None if automatic is None else [bool(x) for x in automatic[1]],
        )
        if self._file is not None and self.path is not None:
            self._file.write(seal(self.path, batch.model_dump_json(exclude_none=True).encode()))
            self._file.flush()
            os.fsync(self._file.fileno())
        self._answers.update(batch.answers())

    def know(self, answers: Iterable[tuple[Key, Answer]]) -> None:
        """Add answers from other files, without writing them to this one."""
        self._answers.update(answers)

    def close(self) -> None:
        if self._file is not None:
            self._file.close()
            self._file = None


def open_ledger(folder: Path) -> Ledger:
    """Open a search's ledger in its scratch folder, and print how many probes it resumes with."""
    ledger = Ledger(folder / "ledger.jsonl")
    if len(ledger):
        print(f"resuming: {len(ledger):,} probes are already in the ledger")
    return ledger
