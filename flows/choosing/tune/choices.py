"""Choices of backend, dtype and batch size, and their measurements."""

from __future__ import annotations

from dataclasses import dataclass, field
from statistics import median

from stages.tasks.contract import Compute

FEWEST, MOST = 8, 1024  # batch sizes that are tried
GROWTH = 1.05  # smallest speed-up for which a larger batch or another backend is worth it
ROUNDS = 5  # of one pass per choice: noise of the machine is alike within a round
PASS_SECONDS = 0.5  # smallest duration of a pass
COMPARED = 128  # probes whose answers are compared
DTYPES = ("float32", "bfloat16")


@dataclass(frozen=True)
class Settings:
    """Settings of a tuning.

    Args:
        memory: share of the machine's memory, or the GPU's, that may be used.
        allow_bfloat16: whether bfloat16, which changes answers, may be recommended.
        rounds: passes of each choice.
        seconds: smallest duration of a pass.
    """

    memory: float = 0.5
    allow_bfloat16: bool = False
    rounds: int = ROUNDS
    seconds: float = PASS_SECONDS


@dataclass
class Choice:
    """One backend with one dtype at one batch size, and its measurements.

    Args:
        compute: the three settings.
        passes: (probes, seconds, CPU-seconds) of each pass.
        memory: peak memory of the process, or its GPU, while it answered, in bytes.
        grown: the part of this that was added by answering.
        far: largest difference of its logits (or discrepancies) from those of eager float32.
        changed: number of the `COMPARED` probes whose pass or fail differs from the current choice.
        tried: probes per second at each batch size that was tried.
    """

    compute: Compute
    passes: list[tuple[int, float, float]] = field(default_factory=list)
    memory: int = 0
    grown: int = 0
    far: float | None = None
    changed: int | None = None
    tried: dict[int, float] = field(default_factory=dict)

    @property
    def speed(self) -> float:
        """Probes per second, the median over the passes."""
        return median(n / seconds for n, seconds, _ in self.passes)

    @property
    def cpu(self) -> float:
        """Probes per CPU-second, the median over the passes."""
        return median(n / max(used, 1e-9) for n, _, used in self.passes)

    @property
    def name(self) -> str:
        """Name for people."""
        return f"{self.compute.backend} {self.compute.dtype}"


@dataclass(frozen=True)
class Tuning:
    """The measured choices, the current one first, and why others could not be measured."""

    choices: list[Choice]
    impossible: dict[str, str]
    compared: int

    def best(self, allow_bfloat16: bool) -> Choice:
        """The fastest allowed choice if it is clearly faster than the current one, otherwise the current one.

        Unless bfloat16 is allowed, this is one in float32, or with the current backend and dtype: backends differ in
        their answers in bfloat16.
        """
        now = self.choices[0]
        may = [c for c in self.choices if allow_bfloat16 or c.compute.dtype == "float32" or c.name == now.name]
        fastest = max(may, key=lambda c: c.speed)
        return fastest if fastest.speed > GROWTH * now.speed else now
