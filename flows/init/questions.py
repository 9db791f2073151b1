"""A person's answers: each is an option, or asked in the terminal with a guess as default."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from rich.console import Console
from rich.markup import escape
from rich.prompt import Confirm, Prompt

from flows.terminal import print_plain
from stages.core.errors import UsageError, did_you_mean
from stages.tasks.init import Answer, Ask, Check


class Questions(Ask):
    """The questions to a person, and the answers.

    An answer is, in this order: the option; what is typed, if there is a terminal; the guess, with `--yes`.

    Args:
        options: answers on the command line, by name; None for an option that was not given.
        asks: whether there is a terminal to ask in.
        yes: whether guesses are accepted without asking.
        before: answers of a run that did not finish, which replace guesses.
    """

    def __init__(
        self,
        console: Console,
        options: Mapping[str, Answer | None],
        *,
        asks: bool,
        yes: bool,
        before: Mapping[str, str | bool] | None = None,
    ) -> None:
        self._console, self._options, self._asks, self._yes = console, options, asks and not yes, yes
        self._before = before or {}
        self.answers: dict[str, str | bool] = {}
        self.unasked: dict[str, str] = {}  # guesses that were accepted, to be shown

    def text(self, name: str, question: str, guess: str | None = None, check: Check = lambda _answer: None) -> str:
        """See Ask; in a terminal, ask again until the answer is usable.

        Raises:
            UsageError: if there is no answer, or an option is unusable.
        """
        earlier = self._before.get(name)
        guess = earlier if isinstance(earlier, str) else guess
        if self._options.get(name) is None and self._asks:
            answer = self._typed(question, guess, check)
        else:
            answer = str(self._unasked(name, guess, f"--{name}", question))
            check(answer)
        self.answers[name] = answer
        return answer

    def choice(self, name: str, question: str, choices: Sequence[str], guess: str | None = None) -> str:
        def check(answer: str) -> None:
            if answer not in choices:
                raise UsageError(
                    f"--{name} {answer}: expected one of {', '.join(choices)}{did_you_mean(answer, choices)}"
                )

        return self.text(name, f"{question} ({', '.join(choices)})", guess, check)

    def confirm(self, name: str, question: str, guess: bool) -> bool:
        """Ask for yes or no.

        Raises:
            UsageError: if there is no answer.
        """
        earlier = self._before.get(name)
        guess = earlier if isinstance(earlier, bool) else guess
        if self._options.get(name) is None and self._asks:
            answer = Confirm.ask(escape(question), console=self._console, default=guess)
        else:
            answer = bool(self._unasked(name, guess, f"--{name} or --no-{name}", question))
        self.answers[name] = answer
        return answer

    def said(self, name: str) -> Answer | None:
        return self._options.get(name)

    def many(self, name: str) -> Sequence[str]:
        said = self._options.get(name)
        return [] if said is None or isinstance(said, str | bool) else said

    def asked(self, name: str) -> bool:
        return self._asks or name in self._before

    def go_on(self, question: str) -> bool:
        """Ask whether to continue; yes if nobody can be asked."""
        return Confirm.ask(escape(question), console=self._console, default=True) if self._asks else True

    def _typed(self, question: str, guess: str | None, check: Check) -> str:
        while True:
            typed = (Prompt.ask(escape(question), console=self._console, default=guess) or "").strip()
            try:
                if not typed:
                    raise UsageError("an answer is required")
                check(typed)
            except UsageError as error:
                print_plain(self._console, str(error), style="yellow")
            else:
                return typed

    def _unasked(self, name: str, guess: str | bool | None, options: str, question: str) -> str | bool:
        """The option, or else the guess, if it may be accepted without asking."""
        given = self._options.get(name)
        if isinstance(given, str | bool):
            return given
        shown = guess if isinstance(guess, str) else "yes" if guess else "no"
        if guess is None or not self._yes:
            accept = f", or --yes to accept the guess: {shown}" if guess is not None else ""
            raise UsageError(f"{question}? There is no terminal to ask in: use {options}{accept}")
        self.unasked[name] = shown
        return guess
