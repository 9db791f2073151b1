"""The ledger: the append-only record of all answered probes of a run.

One line of JSON per batch, flushed to disk before the explorer sees the answers. A kill can only cut the last
line short, and a line that does not parse is dropped on reading: a batch is in the ledger whole or not at all.
An explorer that starts again with the same seed asks the same questions and is answered from here until the
ledger ends, so a resumed run equals an uninterrupted one.
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import IO, Any, NamedTuple

import numpy as np

from stages.errors import InfrastructureError

SCHEMA = 2


class Answer(NamedTuple):
    """The recorded answer to one probe; the automatic measure's own where people's ratings say what a failure is."""

    discrepancy: float
    failed: bool
    output: str
    valid: bool = True
    automatic: float | None = None
    automatic_failed: bool | None = None


class Key(NamedTuple):
    """What identifies a probe."""

    item: str
    cell: int  # its number in the grid, see ConceptSpace.flat
    repeat: int = 0


class Ledger:
    """Answered probes in memory, backed by an append-only file.

    Args:
        path: the file; created when missing. None keeps the ledger in memory only.
    """

    def __init__(self, path: Path | None = None) -> None:
        self.path = path
        self._answers: dict[Key, Answer] = {}
        self._file: IO[str] | None = None
        self.resumed = 0
        if path is not None:
            self._open(path)

    def _open(self, path: Path) -> None:
        path.parent.mkdir(parents=True, exist_ok=True)
        good = 0
        if path.exists():
            with path.open("rb") as file:
                for line in file:
                    if not line.endswith(b"\n"):
                        break  # cut short by a kill
                    try:
                        record = json.loads(line)
                    except ValueError:
                        break
                    if record.get("schema") != SCHEMA:
                        raise InfrastructureError(
                            f"{path} has ledger schema {record.get('schema')}, this version reads {SCHEMA};"
                            " delete it to start over"
                        )
                    self._remember(record)
                    good += len(line)
            os.truncate(path, good)
        self.resumed = len(self._answers)
        self._file = path.open("a", encoding="utf-8")

    def _remember(self, record: dict[str, Any]) -> None:
        names = ["items", "cells", "repeats", "discrepancy", "failed", "outputs", "valid"]
        names += [name for name in ("automatic", "automatic_failed") if name in record]
        for item, cell, repeat, *answer in zip(*(record[name] for name in names), strict=True):
            self._answers[Key(item, cell, repeat)] = Answer(*answer)

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
        """Record a batch of answers; on disk when this returns.

        Args:
            keys: the n probes.
            discrepancy: (n,).
            failed: (n,) bool.
            outputs: n of them.
            valid: (n,) bool; None: all are.
            automatic: discrepancy and failed by the automatic measure, where people's ratings have changed them.
        """
        if valid is None:
            valid = np.ones(len(keys), dtype=bool)
        lengths = {len(keys), len(discrepancy), len(failed), len(outputs), len(valid), *map(len, automatic or ())}
        if len(lengths) > 1:  # checked before it is written: a line that cannot be read would stay for ever
            raise ValueError(f"a batch of {len(keys)} probes was answered by columns of lengths {sorted(lengths)}")
        record = {
            "schema": SCHEMA,
            "items": [k.item for k in keys],
            "cells": [int(k.cell) for k in keys],
            "repeats": [int(k.repeat) for k in keys],
            "discrepancy": [float(x) for x in discrepancy],
            "failed": [bool(x) for x in failed],
            "outputs": list(outputs),
            "valid": [bool(x) for x in valid],
        }
        if automatic is not None:
            record["automatic"] = [float(x) for x in automatic[0]]
            record["automatic_failed"] = [bool(x) for x in automatic[1]]
        if self._file is not None:
            self._file.write(json.dumps(record, ensure_ascii=False, separators=(",", ":")) + "\n")
            self._file.flush()
            os.fsync(self._file.fileno())
        self._remember(record)

    def know(self, answers: Iterable[tuple[Key, Answer]]) -> None:
        """Answer from what lies in other files, too: nothing of it is written here."""
        self._answers.update(answers)

    def close(self) -> None:
        """Close the file; the answers stay readable."""
        if self._file is not None:
            self._file.close()
            self._file = None
