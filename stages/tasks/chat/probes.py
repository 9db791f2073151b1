"""What a probe of a chat model is, what counts as a failure, and how the model is loaded, repaired or not."""

import re
import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict, replace
from functools import cached_property
from pathlib import Path
from typing import Any, ClassVar, Self

import numpy as np
import pandas as pd
import torch

from stages.concepts.catalogue import span
from stages.concepts.texts import TextConcept
from stages.core.errors import UsageError
from stages.core.files import read_table
from stages.core.progress import progress
from stages.params.network import is_served
from stages.tasks.account import Account, Expected
from stages.tasks.attributes import META, ranges_of
from stages.tasks.chat.concepts import TEXTS, Asking, catalogue_of, check_concepts
from stages.tasks.chat.config import ChatDiscrepancy, ChatPrepare, ChatRepair
from stages.tasks.chat.configuration import CONFIGURATION, Configuration, read_configuration
from stages.tasks.chat.conversation import CALLS, Given, Script, as_text
from stages.tasks.chat.data import DATA_LOADERS, Question, QuestionSource, choose_items, questions_of
from stages.tasks.chat.labelled import RUBRIC, about, known, made
from stages.tasks.chat.measures import MEASURES, matches, most_agreed
from stages.tasks.chat.playing import BEST_OF, Draws, Player, answer_in, calls_in, draws_in
from stages.tasks.contract import SPLITS, Exhibit, Items, ProbeBatch, TaskContext
from stages.tasks.judging.verdicts import JUDGE, AnswerToJudge, Judge, Parts
from stages.tasks.language.chats import CHAT_LOADERS, KNOWN, OpenAIChat, generation_of
from stages.tasks.language.encoders import EMBEDDER_LOADERS, Embedder
from stages.tasks.language.form import ADAPTER
from stages.tasks.language.generate import Chats, Turn
from stages.tasks.language.judged import JudgedTexts
from stages.tasks.language.judges import JUDGE_LOADERS, judge_conflicts, judged_origin, prepare_judge, prepared_judge
from stages.tasks.language.models import ChatSource, PackagesModel, load_summarizer
from stages.tasks.openai_chat import CHARACTERS, expected_requests
from stages.tasks.sources import Source

_ASKS = re.compile(r"\b(how (?:many|much|long|old|far)|who|whose|whom|what|which|when|where|why|how)\b", re.IGNORECASE)
GUESSED = 64  # questions from whose length the size of a request is estimated
_LARGEST = 2  # tokens per byte of a question, at most: a change can double letters


class ChatProbes(JudgedTexts):
    """A chat model under test with its questions, or a repaired one, which has a configuration.

    A probe sends a changed question; the answer is compared with the expected answers of the original question, so a
    question can fail unchanged.
    """

    init: ClassVar[str] = ".init:QuestionsInit"
    mining: ClassVar[str] = ".choosing:QuestionTexts"
    proposing: ClassVar[str] = ".choosing:ChatVocabulary"
    usage: ClassVar[str] = ".choosing:QuestionReader"

    prepare_block = ChatPrepare
    discrepancy_block = ChatDiscrepancy
    repair_block = ChatRepair
    loaders: ClassVar[Mapping[str, Mapping[str, type[Source]]]] = {
        "model": {**CHAT_LOADERS, "packages": PackagesModel},
        "data": DATA_LOADERS,
        "embedder": EMBEDDER_LOADERS,
        "judge": JUDGE_LOADERS,
    }
    # Without AROUND: items and the model's room limit its counts, so only params.yaml's levels are known to be
    # possible.
    catalogue: ClassVar[Mapping[str, TextConcept]] = TEXTS
    dtypes = ("float32", "bfloat16")
    rubric = RUBRIC
    not_valid = "changed the words of the question so much that no model could be blamed"

    def __init__(
        self,
        context: TaskContext,
        items: pd.DataFrame,
        model: Chats,
        embedder: Embedder,
        judge: Judge | None = None,
        about_judge: Sequence[str] = (),
        *,
        configuration: Configuration | None = None,
    ) -> None:
        """See JudgedTexts; `model` is the model under test, `configuration` what a repair adds to its prompts."""
        super().__init__(context, items, embedder, judge, about_judge)
        self.model, self.model_hash = model, configuration.hash if configuration else model.hash
        self.threshold = self.settings.threshold
        config = ChatPrepare.model_validate(dict(context.config))
        self.configuration = configuration or Configuration(base=model.hash, prompt=config.prompt)
        self._longest_answer = config.generation.max_new_tokens  # tokens
        self._draws = Draws(config.generation.temperature, config.generation.draws, context.seed)
        self.concepts = span(context.concepts, catalogue_of(config))
        self.questions = questions_of(items)
        self._asking = Asking(self.concepts, context.seed, config, self.questions)
        # A question with other right answers in some cells is also there with these, under names that no item has.
        for one in self.questions[:]:
            for name, version in one.versions().items():
                self._rows[_id_of(one.id, name)] = len(self.questions)
                self.questions.append(version)
        if problem := self.too_long():
            raise UsageError(problem)
        answers = items.get("answer", ())  # from `prepare`, which asked all unchanged questions
        self._clean = dict(zip(self.unchanged(range(len(answers))), answers, strict=True))
        self._answers = dict(self._clean)

    def too_long(self) -> str:
        """Return which question of the grid may exceed the model's room; "" if none does, or the room is unknown."""
        if (room := self.model.room) is None:
            return ""
        for item in self.questions:
            given = Script(*self.configuration.applied(self._asking.longest(item)))
            said = "\n".join((*given.before, given.said))
            most = self.model.tokens(Turn(given.system, said)) + _LARGEST * len(item.question.encode())
            most += len(given.before) * self._longest_answer
            if most > room:
                return (
                    f"concepts: the question {item.id} may take {most} tokens with its answer, and the model has room"
                    f" for {room}; use lower levels of context_length, shorter contexts or a lower"
                    " prepare.generation.max_new_tokens"
                )
        return ""

    @classmethod
    def conflicts(cls, context: TaskContext, prepare: ChatPrepare | None, discrepancy: Any) -> list[str]:
        found = check_concepts(context.concepts, prepare)
        if prepare is not None and is_served(prepare.model) and not prepare.generation.chat:
            found.append("prepare.generation.chat: false, but chat completions always have a chat template")
        if prepare is not None and prepare.generation.temperature:
            found += _conflicts_of_draws(prepare)
        if discrepancy is not None:
            found += judge_conflicts(context, discrepancy.measure, discrepancy.near)
        return found

    @classmethod
    def expected_requests(cls, context: TaskContext) -> Expected | None:
        """See Task: from the requests so far, or else from the length of the questions with their contexts."""
        config, source = ChatPrepare.model_validate(dict(context.config)), cls.source(context, "model")
        if not isinstance(source, OpenAIChat):
            return None

        data: QuestionSource = cls.source(context, "data")
        questions = questions_of(choose_items(data.load(context.inputs)[0], config.items, context.seed))
        rng = np.random.default_rng(0)
        space = span(context.concepts, catalogue_of(config))
        asking = Asking(space, context.seed, config, questions)
        drawn = [questions[k] for k in rng.integers(len(questions), size=GUESSED)]
        turns = [asking(one, cell, 0) for one, cell in zip(drawn, space.sample(GUESSED, rng), strict=True)]
        prompt = float(np.mean([len(as_text(turn)) for turn in turns])) / CHARACTERS
        talks = [one.conversation for one in questions if one.conversation]
        each = max((len(one.before) + 1 + (CALLS if one.tools else 0) for one in talks), default=1)
        each *= config.generation.draws
        # Every unchanged item, and the questions that identify the model: asked, kept and checked.
        preparing = each * sum(config.items.model_dump().values()) + 3 * len(KNOWN)
        expected = expected_requests(
            source, context.audit, preparing, lambda: (prompt, config.generation.max_new_tokens)
        )
        # Requests of prepare are of unchanged questions, which are shorter than most of the grid.
        return replace(expected, prompt=max(expected.prompt, prompt), by_probe=each)

    # Preparation

    @classmethod
    def prepare(cls, context: TaskContext, out_dir: Path) -> dict[str, Any]:
        """See Task: writes model/ and items.parquet, with the answers to all unchanged questions.

        Raises a UsageError when data or weights are missing, unreadable or do not fit each other.
        """
        cls.require_valid(context)
        torch.set_num_threads(context.compute.threads)
        config = ChatPrepare.model_validate(dict(context.config))
        data: QuestionSource = cls.source(context, "data")
        source: ChatSource = cls.source(context, "model")
        questions, skipped = data.load(context.inputs)
        items = choose_items(questions, config.items, context.seed)
        # These fail now, not after all questions, if the items are not valid, or do not fit the concepts.
        Items(items)
        Asking(span(context.concepts, catalogue_of(config)), context.seed, config, questions_of(items))
        embedder = cls._embedder(context)
        generation = generation_of(config.system, **config.generation.model_dump(exclude={"temperature", "draws"}))
        blocks = context.seed, context.config, context.concepts, context.discrepancy, asdict(context.compute)
        account = Account.of(context.audit, *blocks)
        source.build(context.inputs, out_dir / "model", generation, context.compute.dtype, account)
        judged = prepare_judge(
            context, out_dir, cls.rubric, known(questions), lambda count: made(questions, count, context.seed)
        )
        judge = judged and judged[0]
        task = cls(context, items, source.chat(out_dir / "model", context.compute, account), embedder, judge)
        started = time.monotonic()
        # A model behind HTTP may take minutes; local weights answer all at once, for lengths that go together.
        size, answers = context.compute.batch_size if is_served(config.model) else len(items), list[str]()
        with progress("unchanged questions", len(items)) as tell:
            while len(answers) < len(items):
                answers += task.clean(range(len(items))[len(answers) :][:size])
                tell(len(answers), "")
        took = (time.monotonic() - started) / len(items)
        items["answer"] = answers
        items.attrs["skipped"] = skipped
        items.to_parquet(out_dir / "items.parquet", compression="zstd", index=False)
        right = pd.Series(~task.failures(range(len(items))), items.index).groupby(items["split"], sort=False).mean()
        return {
            "items": {split: len(task.items.ids(split)) for split in SPLITS if split in right},
            "clean_accuracy": {str(split): float(share) for split, share in right.items()},
            "clean_words": float(np.mean([len(one.split()) for answer in answers for one in draws_in(answer)])),
            "parameters": task.model.parameters,
            "origin": judged_origin(cls.origin(context), judged),
            "skipped": len(skipped),
            "seconds_per_probe": took,
            **task.judge_numbers(judged),
        }

    @classmethod
    def load(cls, context: TaskContext, prepared: Path, model: Path | None = None) -> Self:
        """See Task; a repaired model is the one under test with a configuration, or with an adapter."""
        source: ChatSource = cls.source(context, "model")
        base, adapted = prepared / "model", model is not None and (model / ADAPTER).exists()
        repaired = model is not None and (model / CONFIGURATION).exists()
        folder = base if model is None or repaired else model
        if adapted:
            chat: Chats = load_summarizer(folder, context.compute, base)
        else:
            chat = source.chat(folder, context.compute, Account.of(context.audit))
        configuration = read_configuration(model, chat.hash) if model and repaired else None
        judged, items = prepared_judge(context, prepared, cls.rubric), read_table(prepared / "items.parquet")
        task = cls(context, items, chat, cls._embedder(context), *judged, configuration=configuration)
        if adapted:
            task._answers.clear()  # those of the model under test
        return task

    # Probing

    def _versions(self, item_ids: Sequence[str], cells: np.ndarray) -> list[str]:
        """Return n items with what is right in their cells, by their names in `rows`."""
        asked = [self.questions[row] for row in self.rows(item_ids)]
        return [_id_of(one.id, self._asking.version(one, cell)) for one, cell in zip(asked, cells, strict=True)]

    def expected(self, item_id: str, cell: np.ndarray) -> Sequence[str]:
        """Return the answers that are right for an item in a cell (concepts,); none if a pattern decides."""
        [row] = self.rows(self._versions([item_id], cell[None]))
        return self.questions[row].answers

    def best_answer(self, item_id: str, cell: np.ndarray, output: str) -> str:
        """Return the answer in an output of `probe`, of several draws the one nearest to what is right."""
        [row] = self.rows(self._versions([item_id], cell[None]))
        return min(map(answer_in, draws_in(output)), key=lambda answer: self._measured(row, answer))

    def probe(self, item_ids: Sequence[str], cells: np.ndarray, repeats: np.ndarray | None = None) -> ProbeBatch:
        """See JudgedTexts; of a conversation, outputs are what the model and the tools said."""
        return super().probe(self._versions(item_ids, cells), cells, repeats)

    def changed(self, item_ids: Sequence[str], cells: np.ndarray, repeats: np.ndarray | None = None) -> list[Given]:
        repeats = np.zeros(len(item_ids), dtype=np.int64) if repeats is None else np.asarray(repeats)
        probes = zip(self.rows(item_ids), np.asarray(cells, dtype=np.int64), repeats.tolist(), strict=True)
        return [self.configuration.applied(self._asking(self.questions[row], cell, n)) for row, cell, n in probes]

    def written(self, item_ids: Sequence[str], cells: np.ndarray) -> list[str]:
        """Return n questions as people would write them, without what the prompt adds."""
        probes = zip(self.rows(item_ids), np.asarray(cells, dtype=np.int64), strict=True)
        return [self._asking.in_tone(self.questions[row], cell) for row, cell in probes]

    def query(self, inputs: Sequence[Given]) -> list[str]:
        turns = [one for one in inputs if isinstance(one, Turn)]
        if len(turns) == len(inputs) and not self._draws.temperature:
            return self.model.answer(turns)
        scripts = [Script(*one) for one in inputs]
        if (number := scripts[0].best_of) == 1:
            return self._player.play(scripts)
        drawn = map(draws_in, Player(self.model, Draws(BEST_OF, number, self._draws.seed)).play(scripts))
        return [texts[most_agreed([*map(answer_in, texts)])] for texts in drawn]

    @cached_property
    def _player(self) -> Player:
        return Player(self.model, self._draws)

    def unchanged(self, rows: Sequence[int]) -> list[Given]:
        """Return what the model under test is given of n unchanged questions."""
        return [self._asking.unchanged(self.questions[row]) for row in rows]

    def clean(self, rows: Sequence[int]) -> list[str]:
        given = self.unchanged(rows)
        return [self._clean[one] for one in given] if self._clean else self.answers(given)

    def is_valid(self, row: int, cell: np.ndarray, repeat: int, given: Given) -> bool:
        """See JudgedTexts: only the words of the question count, not what the prompt adds."""
        item = self.questions[row]
        words = self._asking.question(item, cell, repeat)
        return words == item.question or self.embedder.cosine(words, item.question) >= self.settings.validity

    def measured(self, row: int, output: str) -> float:
        """See JudgedTexts: from the nearest expected answer, from 0 to 1; of several draws the worst, or the best."""
        decides = max if self.settings.fails_if == "any" else min
        return decides(self._measured(row, answer_in(one)) for one in draws_in(output))

    def _measured(self, row: int, output: str) -> float:
        item = self.questions[row]
        if item.pattern:
            return float(not matches(item.pattern, output))
        if self.settings.measure == JUDGE:
            return 1.0  # the judge decides in any case
        if self.settings.measure == "embedding":
            return min(float(np.clip(1 - self.embedder.cosine(output, answer), 0, 1)) for answer in item.answers)
        return min(MEASURES[self.settings.measure](output, answer) for answer in item.answers)

    def _trials(self, rows: Sequence[int], outputs: Sequence[str]) -> tuple[np.ndarray, dict[int, AnswerToJudge]]:
        found, trials = super()._trials(rows, outputs)
        for n, trial in trials.items():
            trials[n] = trial._replace(answer=answer_in(trial.answer), baseline=answer_in(trial.baseline))
        return found, trials

    def is_plain(self, row: int, output: str) -> bool:
        """See JudgedTexts: a pattern decides alone."""
        return bool(self.questions[row].pattern)

    def about(self, row: int) -> Parts:
        return about(self.questions[row])

    @staticmethod
    def about_entry(entry: Question) -> Parts:
        return about(entry)

    def fails_unchanged(self) -> np.ndarray:
        return self.failures(self.rows(self.items.ids("discover")))

    # What explorers and people see

    def features(self, item_ids: Sequence[str]) -> np.ndarray:
        return self.embedder([self.questions[row].question for row in self.rows(item_ids)]).astype(np.float64)

    def attributes(self, item_ids: Sequence[str]) -> pd.DataFrame:
        items = self.items.table
        about = items[[name for name in items if name.startswith(META)]]
        questions = self.questions[: len(items)]
        found = [_ASKS.search(one.question) for one in questions]
        lengths = {
            name: pd.Series(ranges_of([len(text.split()) for text in texts], "words"), items.index)
            for name, texts in (
                ("question length", [one.question for one in questions]),
                ("length of its context", [one.context for one in questions]),
            )
        }
        asks = [" ".join(match[0].lower().split()) if match else "other" for match in found]
        return self._told_apart(about.assign(asks=asks, **lengths), item_ids)

    def exhibit(self, item_ids: Sequence[str], cells: np.ndarray) -> list[Exhibit]:
        answer, turns = self.probe(item_ids, cells), self.changed(item_ids, cells)
        rows = self.rows(self._versions(item_ids, cells))
        assert answer.valid is not None
        shown = []
        for n, (row, first, verdict) in enumerate(
            zip(rows, self.clean(rows), self.verdicts(rows, answer.outputs), strict=True)
        ):
            item = self.questions[row]
            wanted = f"a match of {item.pattern}" if item.pattern else " or ".join(item.answers)
            score = f"discrepancy {answer.discrepancy[n]:.2f}, a failure above {self.threshold:.2f}"
            caption = f"expected {wanted}; {score}" + (f"; {verdict}" if verdict else "")
            if not answer.valid[n] and (verdict is None or verdict.acceptable is not None):
                caption = "the change left too little of the question, so it is not held against the model"
            answers = {"answer to the original": first, "answer to the changed text": answer.outputs[n]}
            original = as_text(self._asking.unchanged(item))
            shown.append(Exhibit(caption, text=as_text(turns[n]), original=original, answers=answers))
        return shown

    def notes(self) -> Sequence[str]:
        """See Task: how many questions fail unchanged, and what the measure misses."""
        wrong = self.fails_unchanged()
        told = [f"{wrong.sum()} of {len(wrong)} unchanged questions are answered wrongly; the search finds these, too."]
        if self.settings.measure == "contains":
            told.append("An answer that holds the expected words counts as right, whatever else it says.")
        if self._draws.number > 1:
            decides = {"any": "any of its answers does", "all": "all of its answers do"}[self.settings.fails_if]
            temperature, number, _ = self._draws
            told.append(f"A probe is answered {number} times at temperature {temperature:g}, and fails if {decides}.")
        talks = [one.conversation for one in self.questions[: len(self.items.table)]]
        tools = [row for row, one in enumerate(talks) if one and one.tools]
        if tools and (silent := sum(not calls_in(text) for text in self.clean(tools))):
            told.append(f"In {silent} of {len(tools)} unchanged conversations with tools the model calls none.")
        return [*told, *self._about_judge]


def _conflicts_of_draws(prepare: ChatPrepare) -> list[str]:
    """List the settings with which answers cannot be drawn at a temperature, one line each."""
    where, found = "prepare.generation.temperature", list[str]()
    if not prepare.generation.chat:
        found.append(f"{where}: needs the model's chat template, and generation.chat is false")
    if taken := sorted({"seed", "temperature"} & {*prepare.model.get("settings", ())}):
        found.append(f"{where}: sets temperature and seed of each request; found {', '.join(taken)} in model.settings")
    if prepare.judge is not None and prepare.generation.draws > 1:
        found.append("prepare.generation.draws: a judge decides on single answers; expected one draw, or no judge")
    return found


def _id_of(item: str, version: str) -> str:
    return f"{item}\0{version}" if version else item
