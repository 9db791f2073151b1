"""How many cases property tests draw: more of them at night."""

from hypothesis import settings


def scaled(cases: int) -> int:
    """So many in the default tests, where 100 is usual for a test, and as many times more at night."""
    return cases * settings.default.max_examples // 100
