"""How large the code is, by folder: files, lines, and lines of code without blank lines, comments and docstrings.

Below, how much of `stages` the default audits reach, by the same walk that decides what is stale.
"""

import ast
import io
import subprocess
import tokenize
from collections import Counter
from pathlib import Path

from rich.console import Console
from rich.table import Table

from stages.code import PASSED_OVER as PARTS
from stages.code import STAGE, Code, read_stages
from stages.params import load_params

TOTALS = ("product", "all else")
PASSED_OVER = (tokenize.COMMENT, tokenize.NL, tokenize.NEWLINE, tokenize.INDENT, tokenize.DEDENT, tokenize.ENDMARKER)


def code_lines(source: str) -> int:
    """Number of lines that hold code."""
    tokens = tokenize.generate_tokens(io.StringIO(source).readline)
    lines = {n for token in tokens if token.type not in PASSED_OVER for n in range(token.start[0], token.end[0] + 1)}
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant) and isinstance(node.value.value, str):
            lines -= set(range(node.lineno, (node.end_lineno or node.lineno) + 1))
    return len(lines)


def room(path: Path) -> str:
    """The folder that a file is counted under; each kind of model, in stages/tasks, has its own."""
    folders = path.parent.parts
    return "/".join(folders[: 3 if "tasks" in folders else 2])


def reached() -> set[Path]:
    """Files of `stages` that a stage of a default audit reaches."""
    code, audits = Code(), load_params().audits.values()
    stages = [stage for stage in read_stages() if stage != STAGE]
    parts = {part.partition(":")[0].replace(".", "/") + ".py" for part in PARTS}  # needed, but in no hash
    return {Path(name) for name in parts.union(*(code.reached(audit, stage) for audit in audits for stage in stages))}


def main() -> None:
    """Print the table."""
    files, lines, code = Counter[str](), Counter[str](), Counter[str]()
    for name in subprocess.check_output(["git", "ls-files", "*.py"], text=True).split():
        source = Path(name).read_text(encoding="utf-8")
        top = name.partition("/")[0]
        for where in (room(Path(name)), TOTALS[top not in ("stages", "flows", "faded")]):
            files[where] += 1
            lines[where] += source.count("\n")
            code[where] += code_lines(source)
    table = Table("folder", *("files", "lines", "code"))
    for where in sorted(files, key=lambda where: (where in TOTALS, where)):
        table.add_row(where, f"{files[where]:,}", f"{lines[where]:,}", f"{code[where]:,}")
    Console().print(table)
    needed, apart = reached(), Table("stages", *("files", "lines"))
    every = {path: len(path.read_text(encoding="utf-8").splitlines()) for path in Path("stages").rglob("*.py")}
    for what, of in (("reached by a default audit", needed & set(every)), ("by none", set(every) - needed)):
        apart.add_row(what, f"{len(of):,}", f"{sum(every[path] for path in of):,}")
    Console().print(apart)


if __name__ == "__main__":
    main()
