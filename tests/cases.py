"""Numbers of cases that property tests draw, which are larger at night."""

from hypothesis import settings


def scaled(cases: int) -> int:
    """The number of cases to draw by day or at night, for a test that usually draws `cases`."""
    return cases * settings.default.max_examples // 100
