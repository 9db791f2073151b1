"""How many cases property tests draw: more of them at night."""

from hypothesis import settings


def scaled(cases: int) -> int:
    """As many of every hundred cases that a test usually draws, by day or at night."""
    return cases * settings.default.max_examples // 100
