"""The list of mutants (`make mutants`) fits the code."""

from __future__ import annotations

from tests.mutants import LIST, ROOT, problem, read


def test_each_mutant_has_its_line_in_the_code_once() -> None:
    mutants = read(LIST.read_text(encoding="utf-8"))
    assert mutants
    assert [why for mutant in mutants if (why := problem(ROOT, mutant))] == []
