"""A first audit names planted weaknesses: two short cases of `benchmarks.planted_models`."""

from __future__ import annotations

import pytest

from benchmarks.planted_models import run


@pytest.mark.nightly
def test_init_and_audit_name_the_class_that_was_never_rotated():
    found = run(1, budget=1500)
    assert found["named"]["sweep"], found["said"]
    # With the default budget it is a confirmed mode (docs/results.md); 1,500 probes are too few to be sure of that.
    assert found["named"]["modes"] or found["named"]["suspected"], found["said"]


@pytest.mark.slow
def test_an_audit_from_python_names_the_topic_that_fails_in_capitals():
    found = run(5)
    assert found["named"]["modes"], found["said"]
