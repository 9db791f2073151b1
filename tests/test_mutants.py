"""The list of mutants (`make mutants`) fits the code."""

from tests.mutants import LIST, ROOT, problem, read


def test_each_mutant_has_its_line_in_the_code_once() -> None:
    mutants = read(LIST.read_text(encoding="utf-8"))
    assert mutants and [why for mutant in mutants if (why := problem(ROOT, mutant))] == []


def test_the_tests_that_ought_to_notice_exist() -> None:
    named = {test for mutant in read(LIST.read_text(encoding="utf-8")) for test in mutant.tests}
    for test in named:
        file, _, name = test.partition("::")
        text = (ROOT / file).read_text(encoding="utf-8")
        assert not name or f"def {name.partition('[')[0]}(" in text, test
