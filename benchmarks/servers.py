"""How a server of chat completions answers what Faded sends it, and what sending takes: one table.

    .venv/bin/python -m benchmarks.servers http://localhost:8000/v1 NAME [--key-env VARIABLE]

Sends about a hundred short requests, and --requests for the speed. All go through the client that audits use, with an
account on disk. CPU time is that of this process, so of the client alone.
"""

import argparse
import json
import tempfile
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import httpx

from stages.core.errors import FadedError
from stages.tasks.account import Account
from stages.tasks.openai_chat import ChatConfig, ChatEndpoint

QUESTIONS = Path("data/questions/inputs/questions.jsonl")
SHORT = 24  # maximum number of tokens of an answer


def questions(n: int, before: str = "") -> list[str]:
    """Return the first n questions of the audit `questions` after a text, numbered so that no two are the same."""
    lines = [json.loads(line)["question"] for line in QUESTIONS.read_text(encoding="utf-8").splitlines()]
    return [f"{before}{number}. {lines[number % len(lines)]}" for number in range(n)]


class Trial:
    """The trial of one server.

    Args:
        config: address and request settings.
        folder: folder for accounts.
    """

    def __init__(self, config: ChatConfig, folder: Path) -> None:
        self.config, self.folder, self.accounts = config, folder, 0

    def ask(self, said: Sequence[str], tokens: int = SHORT, **changes: Any) -> tuple[list[dict[str, Any]], Account]:
        """Return answers in order and their account; keyword arguments replace parts of the config."""
        self.accounts += 1
        account = Account(self.folder / f"{self.accounts}.jsonl")
        chat = ChatEndpoint(self.config.model_copy(update=changes), account)
        return chat.ask([chat.request("", one, tokens) for one in said]), account

    def refused(self, said: str, **changes: Any) -> str:
        """Return the error of a request that should fail, or its answer."""
        try:
            (answer,), account = self.ask([said], retries=0, **changes)
        except FadedError as error:
            return f"{type(error).__name__}: {error}"
        return f"answers {answer['text'][:40]!r} ({answer['finish']}; {account.bill})"

    def rows(self, n: int) -> Iterator[tuple[str, str]]:
        """Yield what was tried and the result."""
        key = {"Authorization": f"Bearer {self.config.key()}"} if self.config.key_env else {}
        models = httpx.get(f"{self.config.base}/models", headers=key, trust_env=not self.config.local)
        names = [one["id"] for one in models.json()["data"]] if models.is_success else []
        yield "GET models", f"{models.status_code}, {', '.join(names) or 'nothing'}"
        asked = questions(32)
        first, account = self.ask(asked)
        yield "32 questions", f"{sorted({one['finish'] for one in first})}, {account.bill}, model {first[0]['model']}"
        yield "asked again, last first", f"{_same(first, self.ask(asked[::-1])[0][::-1])} of 32 the same"
        long = questions(16, " ".join(questions(10)) + "\n\nAnswer this one: ")  # most of each is the same, and cached
        first, account = self.ask(long)
        yield "16 long questions", f"{account.bill}"
        yield "asked again, last first", f"{_same(first, self.ask(long[::-1])[0][::-1])} of 16 the same"
        yield "one at a time", f"{_same(first, self.ask(long, concurrency=1)[0])} of 16 the same"
        warm = {"temperature": 1.0}
        drawn = [self.ask(asked, settings=warm | {"seed": seed})[0] for seed in (1, 1, 2)]
        yield "temperature 1, the same seed", f"{_same(*drawn[:2])} of 32 the same"
        yield "temperature 1, another seed", f"{_same(*drawn[1:])} of 32 the same"
        (cut,), account = self.ask(asked[:1], tokens=1)
        yield "max_tokens 1", f"{cut['finish']}, {account.bill.completion} completion token(s)"
        (ended,), _ = self.ask(asked[:1], settings={"stop": ["e"]})
        yield "stop: [e]", f"{ended['text']!r}, {ended['finish']}"
        yield "an unknown model", self.refused(asked[0], model="nobody/nothing")
        yield "a field that it does not know", self.refused(asked[0], settings={"not_a_field": 1})
        yield "60,000 words", self.refused("word " * 60_000)
        wall, cpu = time.monotonic(), time.process_time()
        _, account = self.ask(questions(n), tokens=1)
        wall, cpu = time.monotonic() - wall, time.process_time() - cpu
        told = f"{n / wall:,.0f} a second, {1e3 * cpu / n:.1f} ms of CPU each, {account.bill}"
        yield f"{n} requests, {self.config.concurrency} at once", told


def _same(one: Sequence[dict[str, Any]], other: Sequence[dict[str, Any]]) -> int:
    return sum(a["text"] == b["text"] for a, b in zip(one, other, strict=True))


def main() -> None:
    """Try a server and print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("url", help="base URL")
    parser.add_argument("model", help="its name there")
    parser.add_argument("--key-env")
    parser.add_argument("--requests", type=int, default=500, help="for the speed")
    args = parser.parse_args()

    config = ChatConfig.model_validate({"openai": args.url, "model": args.model, "key_env": args.key_env})
    with tempfile.TemporaryDirectory() as folder:
        print("| tried | seen |\n|---|---|")
        for tried, seen in Trial(config, Path(folder)).rows(args.requests):
            print(f"| {tried} | {seen} |", flush=True)


if __name__ == "__main__":
    main()
