"""What a model that is paid for was asked, what it answered, and what that cost: .faded/account/AUDIT.jsonl.

A line is on disk before an answer is used, so that a kill loses neither the bill nor what was paid for. The bill is of
all requests that were answered, until somebody removes the file. Answers are given again instead of being paid twice
for as long as the model is the one that was prepared: a preparation goes on with the answers of one that was killed, or
that had other settings (a lower `max_cost`, fewer items), and begins afresh where the model answers differently, or
where it had ended well and runs again unchanged, as `faded audit --force` has it.
"""

from __future__ import annotations

import fcntl
import os
import threading
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import IO

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from stages.environment import WORK
from stages.errors import UsageError
from stages.files import content_hash, seal, unseal
from stages.params import Strict

MILLION = 1e6
CUT = "length"  # why an answer ended: the limit on its tokens
REFUSED = ("refusal", "content_filter")


class Price(Strict):
    """What a million tokens cost, in any currency."""

    prompt: float = Field(ge=0, description="a million tokens of what is asked")
    completion: float = Field(ge=0, description="a million tokens of what is answered")

    def of(self, prompt_tokens: float, completion_tokens: float) -> float:
        """What so many tokens cost."""
        return (self.prompt * prompt_tokens + self.completion * completion_tokens) / MILLION


class Answered(BaseModel):
    """One answer: its text, why it ended, the model's own name for itself, and the tokens it says it was paid in."""

    model_config = ConfigDict(strict=True, extra="forbid", frozen=True)

    text: str
    finish: str
    model: str
    prompt_tokens: int | None = Field(ge=0)
    completion_tokens: int | None = Field(ge=0)


class _Begun(BaseModel):
    """A preparation began: of which model, with which settings, and whether earlier answers are void."""

    model: str
    settings: str
    afresh: bool


class _Line(BaseModel):
    """One of three: a preparation began, a later stage used what it had prepared, or a request was answered."""

    begun: _Begun | None = None
    used: bool = False
    asked: str = ""
    answer: Answered | None = None
    price: Price | None = None  # in params.yaml, when it was asked


@dataclass(frozen=True)
class Bill:
    """Requests that were answered, and their tokens.

    Args:
        requests: how many.
        prompt: tokens of what was asked.
        completion: tokens of what was answered.
        cost: what they cost, each at the price there was in params.yaml when it was asked.
        uncounted: requests of which the server did not say the tokens.
        unpriced: those of them that had a price.
        cut: answers that the limit on their tokens ended.
        refused: answers that were refused.
        empty: answers without a word that were not.
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

    def plus(self, answer: Answered, price: Price | None) -> Bill:
        """The bill with one more answer."""
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
        """As people are told of it."""
        told = f"{self.requests:,} request(s), {self.prompt:,} prompt and {self.completion:,} completion tokens"
        odd = {"without token counts": self.uncounted, "cut": self.cut, "refused": self.refused, "empty": self.empty}
        return told + "".join(f", {count:,} {what}" for what, count in odd.items() if count)


@dataclass(frozen=True)
class Expected:
    """What the requests of an audit are likely to take.

    Args:
        preparing: requests of prepare, at most.
        prompt: tokens of what is asked, by request.
        completion: likewise of what is answered.
        measured: requests that this is the mean of; 0: a guess.
        price: of tokens, where there is one.
        max_cost: what all requests may cost.
        bill: what there was so far.
        by_probe: requests that a probe takes, at most.
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
    """See the module. Threads may share it, and processes the file.

    Args:
        path: the file; created with the first line. None keeps all in memory.
        settings: all that a preparation goes by, by which one that is repeated unchanged is told.
    """

    def __init__(self, path: Path | None = None, settings: str = "") -> None:
        self.path, self.settings = path, settings
        self.preparing = False
        self._bill = Bill()
        self._known: dict[str, Answered] = {}
        self._cut: set[str] = set()
        self._begun: _Begun | None = None
        self._used = False
        self._read_to = 0
        self._lock = threading.Lock()

    @classmethod
    def of(cls, audit: str, *settings: object) -> Account:
        """That of an audit of this workspace."""
        return cls(WORK / "account" / f"{audit}.jsonl", request_key(*settings))

    def begin(self, model: str) -> None:
        """A preparation begins; `model` tells which model answers, as far as that can be told."""
        self._catch_up()
        last, self.preparing = self._begun, True
        repeated = last is not None and self._used and last.settings == self.settings
        afresh = last is None or last.model != model or repeated
        self._append(_Line(begun=_Begun(model=model, settings=self.settings, afresh=afresh)))

    def use(self) -> None:
        """A later stage begins, so the preparation has ended well."""
        self._catch_up()
        if self._begun is not None and not self._used:
            self._append(_Line(used=True))

    def add(self, asked: str, answer: Answered, price: Price | None = None) -> None:
        """A request was answered; on disk when this returns.

        Args:
            asked: what tells the request from others.
            answer: what it was answered.
            price: of its tokens.
        """
        self._append(_Line(asked=asked, answer=answer, price=price))

    def known(self, asked: str) -> Answered | None:
        """The answer that was paid for already, if there is one."""
        return self._known.get(asked)

    def was_cut(self, text: str) -> bool:
        """Whether it is an answer that the limit on its tokens ended."""
        return text in self._cut

    @property
    def bill(self) -> Bill:
        """What there was so far, other processes included."""
        self._catch_up()
        return self._bill

    def check(self, name: str, price: Price | None, max_cost: float | None) -> None:
        """Stop where the money is spent.

        Raises:
            UsageError: when it is, or when nobody can tell.
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

    def _append(self, line: _Line) -> None:
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
        """Take what others have written."""
        if self.path is not None and self.path.exists():
            with self._lock, self.path.open("rb") as file:
                self._read(file)

    def _read(self, file: IO[bytes]) -> None:
        for line in self._lines(file):
            self._take(line)

    def _lines(self, file: IO[bytes]) -> Iterator[_Line]:
        """Whole lines that were not read yet; damaged ones say nothing."""
        assert self.path is not None
        file.seek(self._read_to)
        for line in file:
            if not line.endswith(b"\n"):
                return
            self._read_to += len(line)
            try:
                yield _Line.model_validate_json(unseal(self.path, line) or b"")
            except ValidationError:
                continue

    def _take(self, line: _Line) -> None:
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
    """An amount in whatever currency prices are in: "1,234.50", "0.0023"."""
    return f"{amount:,.2f}" if amount >= 1 else f"{amount:.2g}"


def request_key(*parts: object) -> str:
    """What tells a request from others: a hash of plain data."""
    return content_hash([], *parts)
