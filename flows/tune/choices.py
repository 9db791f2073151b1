"""What there is to choose from, and what was measured of it."""

from __future__ import annotations

from dataclasses import dataclass, field
from statistics import median

from stages.tasks.contract import Compute

FEWEST, MOST = 8, 1024  # batch sizes that are tried
GROWTH = 1.05  # doubling the batch, or another backend, has to give so much more to be worth it
ROUNDS = 5  # in each, one pass of every choice: cores are noisy, and alike for all within a round
PASS_SECONDS = 0.5  # a pass takes at least that long
COMPARED = 128  # probes whose answers are compared
DTYPES = ("float32", "bfloat16")


@dataclass(frozen=True)
class Settings:
    """What is asked of a tuning.

    Args:
        memory: share of the machine's memory, or the GPU's, that may be used.
        allow_bfloat16: whether bfloat16, which changes answers, may be recommended.
        rounds: passes of each choice.
        seconds: each takes at least.
    """

    memory: float = 0.5
    allow_bfloat16: bool = False
    rounds: int = ROUNDS
    seconds: float = PASS_SECONDS


@dataclass
class Choice:
    """One backend with one dtype at one batch size, and what was measured of it.

    Args:
        compute: with the three.
        passes: (probes, seconds, CPU-seconds) of each pass.
        memory: bytes that the process, or its GPU, held at most while it answered.
        grown: how much of that came by answering.
        far: largest difference of its logits (or discrepancies) from those of eager float32.
        changed: of `COMPARED` probes, how many fail that pass with the present choice, or the other way round.
        tried: probes a second at each batch size that was tried.
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
        """Probes a second, the median over the passes."""
        return median(n / seconds for n, seconds, _ in self.passes)

    @property
    def cpu(self) -> float:
        """Probes a CPU-second, the median over the passes."""
        return median(n / max(used, 1e-9) for n, _, used in self.passes)

    @property
    def name(self) -> str:
        """For people."""
        return f"{self.compute.backend} {self.compute.dtype}"


@dataclass(frozen=True)
class Tuning:
    """What was measured, the present choice first, and why some could not be."""

    choices: list[Choice]
    impossible: dict[str, str]
    compared: int

    def best(self, allow_bfloat16: bool) -> Choice:
        """The fastest that may be taken; the present one, unless another is clearly faster.

        Unasked that is one in float32, or what computes as the present one does: bfloat16 of another backend has other
        answers than that of this one.
        """
        now = self.choices[0]
        may = [c for c in self.choices if allow_bfloat16 or c.compute.dtype == "float32" or c.name == now.name]
        fastest = max(may, key=lambda c: c.speed)
        return fastest if fastest.speed > GROWTH * now.speed else now
