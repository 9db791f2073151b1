"""Record of the requests to a paid model, its answers and their cost: .faded/account/AUDIT.jsonl.

A line is on disk before its answer is used, so a kill loses neither the bill nor a paid answer. The bill covers every
answered request until somebody removes the file. Recorded answers are reused as long as the model is the one that was
prepared: a new preparation reuses the answers of one that was killed, or that had other settings (a lower `max_cost`,
fewer items). It starts over if the model answers differently, or if the last preparation succeeded and is repeated
unchanged, as with `faded audit --force`.
"""

import contextlib
import fcntl
import os
import threading
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Self

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from stages.core.environment import WORK
from stages.core.errors import UsageError
from stages.core.files import content_hash, seal, unseal
from stages.params import Strict

MILLION = 1e6
CUT = "length"  # finish reason: the limit on tokens was reached
REFUSED = ("refusal", "content_filter")


class Price(Strict):
    """Price of a million tokens, in any currency."""

    prompt: float = Field(ge=0, description="a million tokens of what is asked")
    completion: float = Field(ge=0, description="a million tokens of what is answered")

    def of(self, prompt_tokens: float, completion_tokens: float) -> float:
        """Cost of this many tokens."""
        return (self.prompt * prompt_tokens + self.completion * completion_tokens) / MILLION


class RecordedAnswer(BaseModel):
    """One answer: its text, its finish reason, the name the model reports, and the token counts the server reports."""

    model_config = ConfigDict(strict=True, extra="forbid", frozen=True)

    text: str
    finish: str
    model: str
    prompt_tokens: int | None = Field(ge=0)
    completion_tokens: int | None = Field(ge=0)


class _Begun(BaseModel):
    """Start of a preparation: the model, the settings, and whether earlier answers are void."""

    model: str
    settings: str
    afresh: bool


class _AccountLine(BaseModel):
    """One event: a preparation started, a later stage used its result, or a request was answered."""

    begun: _Begun | None = None
    used: bool = False
    asked: str = ""
    answer: RecordedAnswer | None = None
    price: Price | None = None  # from params.yaml at the time of the request


@dataclass(frozen=True)
class Bill:
    """Totals over the answered requests.

    Args:
        prompt: prompt tokens.
        completion: completion tokens.
        cost: total cost, each request at the price in params.yaml at the time.
        uncounted: requests for which the server reported no token counts.
        unpriced: requests among these that had a price.
        cut: answers cut by the limit on tokens.
        empty: empty answers that were not refused.
    """

    requests: int = 0
    prompt: int = 0
    completion: int = 0
    cost: float = 0.0
    uncounted: int = 0
    unpriced: int = 0
    cut: int = 0
    refused: int = 0
    empty: int = 0

    def plus(self, answer: RecordedAnswer, price: Price | None) -> "Bill":
        known = answer.prompt_tokens is not None and answer.completion_tokens is not None
        prompt, completion = answer.prompt_tokens or 0, answer.completion_tokens or 0
        return Bill(
            self.requests + 1,
            self.prompt + prompt,
            self.completion + completion,
            self.cost + (price.of(prompt, completion) if price else 0.0),
            self.uncounted + (not known),
            self.unpriced + (price is not None and not known),
            self.cut + (answer.finish == CUT),
            self.refused + (answer.finish in REFUSED),
            self.empty + (not answer.text and answer.finish not in REFUSED),
        )

    def __str__(self) -> str:
        told = f"{self.requests:,} request(s), {self.prompt:,} prompt and {self.completion:,} completion tokens"
        odd = {"without token counts": self.uncounted, "cut": self.cut, "refused": self.refused, "empty": self.empty}
        return told + "".join(f", {count:,} {what}" for what, count in odd.items() if count)


@dataclass(frozen=True)
class Expected:
    """Estimate of the requests an audit needs.

    Args:
        preparing: requests of `prepare`, at most.
        prompt: prompt tokens per request.
        completion: completion tokens per request.
        measured: number of requests these means are taken over; 0 if they are a guess.
        price: price of tokens, if there is one.
        max_cost: limit on the cost of all requests.
        by_probe: requests per probe, at most.
    """

    preparing: int
    prompt: float
    completion: float
    measured: int
    price: Price | None
    max_cost: float | None
    bill: Bill
    by_probe: int = 1


class Account:
    """The account of one audit, see the module. Threads may share it, and processes may share the file.

    Args:
        path: the file, created with the first line. None keeps everything in memory.
        settings: hash of everything a preparation depends on, to recognise one that is repeated unchanged.
    """

    def __init__(self, path: Path | None = None, settings: str = "") -> None:
        self.path, self.settings = path, settings
        self.preparing = False
        self._bill = Bill()
        self._known: dict[str, RecordedAnswer] = {}
        self._cut: set[str] = set()
        self._begun: _Begun | None = None
        self._used = False
        self._read_to = 0
        self._lock = threading.Lock()

    @classmethod
    def of(cls, audit: str, *settings: object) -> Self:
        """Open the account of an audit of this workspace."""
        return cls(WORK / "account" / f"{audit}.jsonl", request_key(*settings))

    def begin(self, model: str) -> None:
        """Record the start of a preparation; `model` identifies the model that answers, as far as possible."""
        self._catch_up()
        last, self.preparing = self._begun, True
        repeated = last is not None and self._used and last.settings == self.settings
        afresh = last is None or last.model != model or repeated
        self._append(_AccountLine(begun=_Begun(model=model, settings=self.settings, afresh=afresh)))

    def use(self) -> None:
        """Record that a later stage started, so the preparation has succeeded."""
        self._catch_up()
        if self._begun is not None and not self._used:
            self._append(_AccountLine(used=True))

    def add(self, asked: str, answer: RecordedAnswer, price: Price | None = None) -> None:
        """Record an answered request by its key (`asked`); it is on disk when this returns."""
        self._append(_AccountLine(asked=asked, answer=answer, price=price))

    def known(self, asked: str) -> RecordedAnswer | None:
        """Return the recorded answer to a request, if there is one."""
        return self._known.get(asked)

    def was_cut(self, text: str) -> bool:
        """Whether this is the text of an answer cut by the limit on tokens."""
        return text in self._cut

    @property
    def bill(self) -> Bill:
        """The bill so far, including that of other processes."""
        self._catch_up()
        return self._bill

    def check(self, name: str, price: Price | None, max_cost: float | None) -> None:
        """Raise an error if the budget is spent.

        Raises a UsageError if `max_cost` is reached, or if that is unknown because token counts are missing.
        """
        if price is None or max_cost is None:
            return
        bill = self.bill
        where = f". The bill is {self.path}; without that file it begins at 0" if self.path else ""
        if bill.unpriced:
            raise UsageError(
                f"{bill.unpriced:,} answer(s) came without a count of their tokens (`usage`), so that nobody can tell"
                f" when max_cost is reached: remove prepare.model.max_cost, or ask a server that counts{where}"
            )
        if bill.cost >= max_cost:
            raise UsageError(
                f"prepare.model.max_cost: {max_cost:g} is reached, the audit has cost {money(bill.cost)} ({bill}) and"
                f" would ask {name} for more. What was answered is kept: raise max_cost and run the audit again, and it"
                f" goes on where it was{where}"
            )

    def _append(self, line: _AccountLine) -> None:
        if self.path is None:
            with self._lock:
                self._take(line)
            return
        self.path.parent.mkdir(parents=True, exist_ok=True)
        with self._lock, self.path.open("a+b") as file:
            fcntl.flock(file, fcntl.LOCK_EX)
            self._read(file)
            # A kill may have cut the last line short.
            start = b"" if self._read_to == file.seek(0, os.SEEK_END) else b"\n"
            file.write(start + seal(self.path, line.model_dump_json(exclude_defaults=True).encode()))
            file.flush()
            os.fsync(file.fileno())
            self._read(file)

    def _catch_up(self) -> None:
        """Read lines that other processes have written."""
        if self.path is not None and self.path.exists():
            with self._lock, self.path.open("rb") as file:
                self._read(file)

    def _read(self, file: IO[bytes]) -> None:
        """Take in complete lines not read yet; damaged lines are skipped."""
        assert self.path is not None
        file.seek(self._read_to)
        for line in file:
            if not line.endswith(b"\n"):
                return
            self._read_to += len(line)
            with contextlib.suppress(ValidationError):
                self._take(_AccountLine.model_validate_json(unseal(self.path, line) or b""))

    def _take(self, line: _AccountLine) -> None:
        if line.begun is not None:
            if line.begun.afresh:
                self._known.clear()
            self._begun, self._used = line.begun, False
        elif line.used:
            self._used = True
        elif line.answer is not None:
            self._known.setdefault(line.asked, line.answer)
            self._bill = self._bill.plus(line.answer, line.price)
            if line.answer.finish == CUT:
                self._cut.add(line.answer.text)


def money(amount: float) -> str:
    """Format an amount, whatever its currency: "1,234.50", "0.0023"."""
    return f"{amount:,.2f}" if amount >= 1 else f"{amount:.2g}"


def request_key(*parts: object) -> str:
    """Hash of plain data that identifies a request."""
    return content_hash([], *parts)
