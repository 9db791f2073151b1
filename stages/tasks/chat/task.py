"""The chat task: what a probe is, and what counts as a failure."""

from __future__ import annotations

import re
import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any, ClassVar, Self

import numpy as np
import pandas as pd
import torch

from stages.concepts.catalogue import span
from stages.concepts.texts import TextConcept
from stages.errors import UsageError
from stages.files import read_table
from stages.network import is_served
from stages.tasks.account import Account, Expected
from stages.tasks.attributes import META, ranges_of
from stages.tasks.base import Task
from stages.tasks.chat.concepts import TEXTS, Asking, catalogue_of, check_concepts
from stages.tasks.chat.config import DiscrepancyConfig, PrepareConfig
from stages.tasks.chat.data import DATA_LOADERS, Question, QuestionSource, choose_items
from stages.tasks.chat.labelled import RUBRIC, about, labelled_answers
from stages.tasks.chat.measures import MEASURES, matches
from stages.tasks.chat.models import Chats, ChatSource, PackageChat, TransformersChat, Turn, generation_of
from stages.tasks.chat.served import KNOWN, OpenAIChat
from stages.tasks.contract import SPLITS, Exhibit, Items, ProbeBatch, TaskContext
from stages.tasks.judging import JUDGE, Judge, Trial, Verdict, within
from stages.tasks.openai_chat import CHARACTERS, expected_requests
from stages.tasks.source import Source
from stages.tasks.summarization.judges import (
    JUDGE_LOADERS,
    expected_judgements,
    judge_conflicts,
    judge_notes,
    judged_origin,
    not_valid_with,
    prepare_judge,
    prepared_judge,
)
from stages.tasks.summarization.measures import EMBEDDER_LOADERS, Embedder, EmbedderSource

_ASKS = re.compile(r"\b(how (?:many|much|long|old|far)|who|whose|whom|what|which|when|where|why|how)\b", re.IGNORECASE)
GUESSED = 64  # questions from whose length the size of a request is estimated
_LARGEST = 2  # tokens per byte of a question, at most: a change can double letters


class Chat(Task):
    """A chat model under test with its questions.

    A probe sends a changed question; the answer is compared with the expected answers of the original question, so a
    question can fail unchanged.
    """

    init: ClassVar[str] = ".init:QuestionsInit"

    prepare_block = PrepareConfig
    discrepancy_block = DiscrepancyConfig
    loaders: ClassVar[Mapping[str, Mapping[str, type[Source]]]] = {
        "model": {"package": PackageChat, "transformers": TransformersChat, "openai": OpenAIChat},
        "data": DATA_LOADERS,
        "embedder": EMBEDDER_LOADERS,
        "judge": JUDGE_LOADERS,
    }
    # Without AROUND: items and the model's room limit its counts, so only params.yaml's levels are known to be
    # possible.
    catalogue: ClassVar[Mapping[str, TextConcept]] = TEXTS
    dtypes = ("float32", "bfloat16")
    not_valid = "changed the words of the question so much that no model could be blamed"

    def __init__(
        self,
        context: TaskContext,
        items: pd.DataFrame,
        model: Chats,
        embedder: Embedder,
        judge: Judge | None = None,
        about_judge: Sequence[str] = (),
    ) -> None:
        """See Task.load.

        Args:
            context: the audit's settings.
            items: the table that `prepare` writes.
            model: the model.
            embedder: measures similarity.
            judge: the model that judges answers, if there is one.
            about_judge: sentences about it for the report.
        """
        torch.set_num_threads(context.compute.threads)
        self.context, self.model, self.model_hash, self.embedder = context, model, model.hash, embedder
        config = PrepareConfig.model_validate(dict(context.config))
        self.settings = DiscrepancyConfig.model_validate(dict(context.discrepancy))
        self.threshold = self.settings.threshold
        self.judge, self._about_judge = judge, about_judge
        if judge is not None:
            vars(self)["not_valid"] = not_valid_with(self.not_valid)
        self.items = Items(items)
        self.concepts = span(context.concepts, catalogue_of(config))
        self.questions = _questions(items)
        self._rows = {one.id: row for row, one in enumerate(self.questions)}
        self._asking = Asking(self.concepts, context.seed, config, self.questions)
        self._check_room()
        known = items.get("answer", ())  # from `prepare`, which asked all unchanged questions
        self._answers = dict(zip(map(self._asking.unchanged, self.questions), known, strict=False))

    def _check_room(self) -> None:
        """Refuse a grid whose longest questions exceed the model's room.

        Raises:
            UsageError: when they do; the message names the first such item.
        """
        if (room := self.model.room) is None:
            return
        for item in self.questions:
            most = self.model.tokens(self._asking.longest(item)) + _LARGEST * len(item.question.encode())
            if most > room:
                raise UsageError(
                    f"concepts: the question {item.id} may take {most} tokens with its answer, and the model has room"
                    f" for {room}; use lower levels of context_length, shorter contexts or a lower"
                    " prepare.generation.max_new_tokens"
                )

    @classmethod
    def conflicts(cls, context: TaskContext, prepare: PrepareConfig | None, discrepancy: Any) -> list[str]:
        """See Task: errors of the concepts, and settings that a model behind HTTP does not have."""
        found = check_concepts(context.concepts, prepare)
        if prepare is not None and is_served(prepare.model) and not prepare.generation.chat:
            found.append("prepare.generation.chat: false, but chat completions always have a chat template")
        if discrepancy is not None:
            found += judge_conflicts(context, discrepancy.measure, discrepancy.near)
        return found

    @classmethod
    def expected_requests(cls, context: TaskContext) -> Expected | None:
        """See Task: from the requests so far, or else from the length of the questions with their contexts."""
        config, source = PrepareConfig.model_validate(dict(context.config)), cls.source(context, "model")
        if not isinstance(source, OpenAIChat):
            return None

        data: QuestionSource = cls.source(context, "data")
        questions = _questions(choose_items(data.load(context.inputs)[0], config.items, context.seed))
        rng = np.random.default_rng(0)
        space = span(context.concepts, catalogue_of(config))
        asking = Asking(space, context.seed, config, questions)
        drawn = [questions[k] for k in rng.integers(len(questions), size=GUESSED)]
        turns = [asking(one, cell, 0) for one, cell in zip(drawn, space.sample(GUESSED, rng), strict=True)]
        prompt = float(np.mean([len(turn.system) + len(turn.said) for turn in turns])) / CHARACTERS
        # Every unchanged item, and the questions that identify the model: asked, kept and checked.
        preparing = sum(config.items.model_dump().values()) + 3 * len(KNOWN)
        expected = expected_requests(
            source, context.audit, preparing, lambda: (prompt, config.generation.max_new_tokens)
        )
        # Requests of prepare are of unchanged questions, which are shorter than most of the grid.
        return replace(expected, prompt=max(expected.prompt, prompt))

    @classmethod
    def expected_judgements(cls, context: TaskContext) -> Expected | None:
        """See Task: one for each answer, as it is not known in advance how many the judge must decide."""
        items = PrepareConfig.model_validate(dict(context.config)).items

        def length() -> float:
            data: QuestionSource = cls.source(context, "data")
            parts = [about(one) for one in data.load(context.inputs)[0]]
            return float(np.mean([sum(len(text) for _, text in each) for each in parts]))

        return expected_judgements(context, sum(items.model_dump().values()), RUBRIC, length)

    # Preparation

    @classmethod
    def prepare(cls, context: TaskContext, out_dir: Path) -> dict[str, Any]:
        """See Task: writes model/ and items.parquet, with the answers to all unchanged questions.

        Raises:
            UsageError: when data or weights are missing, unreadable or do not fit each other.
        """
        cls.require_valid(context)
        torch.set_num_threads(context.compute.threads)
        config = PrepareConfig.model_validate(dict(context.config))
        data: QuestionSource = cls.source(context, "data")
        source: ChatSource = cls.source(context, "model")
        questions, skipped = data.load(context.inputs)
        items = choose_items(questions, config.items, context.seed)
        Items(items)  # fails now, not after all questions, if they are not valid items
        embedder = cls._embedder(context)
        generation = generation_of(config.system, **config.generation.model_dump())
        blocks = context.seed, context.config, context.concepts, context.discrepancy, asdict(context.compute)
        account = Account.of(context.audit, *blocks)
        source.build(context.inputs, out_dir / "model", generation, context.compute.dtype, account)
        judged = prepare_judge(
            context, out_dir, RUBRIC, lambda s: labelled_answers(questions, context.inputs, s, context.seed)
        )
        judge = judged and judged[0]
        task = cls(context, items, source.chat(out_dir / "model", context.compute, account), embedder, judge)
        started = time.monotonic()
        answers = task.answers([task._asking.unchanged(one) for one in task.questions])
        took = (time.monotonic() - started) / len(items)
        items["answer"] = answers
        items.attrs["skipped"] = skipped
        items.to_parquet(out_dir / "items.parquet", compression="zstd", index=False)
        right = pd.Series(~task.fails_as_it_is(), items.index).groupby(items["split"], sort=False).mean()
        numbers = {} if judged is None else {"judge": {**judged[1].to_json(), **task.decided()}}
        return {
            "items": {split: len(task.items.ids(split)) for split in SPLITS if split in right},
            "clean_accuracy": {str(split): float(share) for split, share in right.items()},
            "clean_words": float(np.mean([len(answer.split()) for answer in answers])),
            "parameters": task.model.parameters,
            "origin": judged_origin(cls.origin(context), context, judged),
            "skipped": len(skipped),
            "seconds_per_probe": took,
            **numbers,
        }

    @classmethod
    def load(cls, context: TaskContext, prepared: Path, model: Path | None = None) -> Self:
        """See Task; there is no other model, as chat models are not repaired."""
        source: ChatSource = cls.source(context, "model")
        chat = source.chat(model or prepared / "model", context.compute, Account.of(context.audit))
        judge, notes = prepared_judge(context, prepared, RUBRIC), judge_notes(context, prepared)
        return cls(context, read_table(prepared / "items.parquet"), chat, cls._embedder(context), judge, notes)

    @classmethod
    def _embedder(cls, context: TaskContext) -> Embedder:
        source: EmbedderSource = cls.source(context, "embedder")
        return source.load(context.inputs, context.compute.device)

    # Probing

    def rows(self, item_ids: Sequence[str]) -> list[int]:
        """Rows of n items in the table."""
        return [self._rows[item] for item in item_ids]

    def answers(self, turns: Sequence[Turn]) -> list[str]:
        """Return the model's answers to n questions; known answers are not requested again."""
        unknown = [turn for turn in dict.fromkeys(turns) if turn not in self._answers]
        # The same number of pieces for each process, with questions of all lengths in each.
        processes = self.context.compute.processes
        count = -(-len(unknown) // (self.context.compute.batch_size * processes)) * processes
        pieces = [piece for k in range(count) if (piece := unknown[k::count])]
        for piece, answers in zip(pieces, self.shared(self.answer, [(p,) for p in pieces]), strict=True):
            self._answers.update(zip(piece, answers, strict=True))
        return [self._answers[turn] for turn in turns]

    def answer(self, turns: Sequence[Turn]) -> list[str]:
        """Answer questions that were not asked before."""
        return self.model.answer(turns)

    def asked(self, item_ids: Sequence[str], cells: np.ndarray, repeats: np.ndarray | None = None) -> list[Turn]:
        """Return the model's inputs of n probes."""
        repeats = np.zeros(len(item_ids), dtype=np.int64) if repeats is None else np.asarray(repeats)
        probes = zip(self.rows(item_ids), np.asarray(cells, dtype=np.int64), repeats.tolist(), strict=True)
        return [self._asking(self.questions[row], cell, repeat) for row, cell, repeat in probes]

    def written(self, item_ids: Sequence[str], cells: np.ndarray) -> list[str]:
        """Return n questions as people would write them, without what the prompt adds."""
        probes = zip(self.rows(item_ids), np.asarray(cells, dtype=np.int64), strict=True)
        return [self._asking.in_tone(self.questions[row], cell) for row, cell in probes]

    def probe(self, item_ids: Sequence[str], cells: np.ndarray, repeats: np.ndarray | None = None) -> ProbeBatch:
        """See Task. Outputs are the answers.

        A question whose changed words are too far from the original (`validity`) is no evidence: its probe is not valid
        and has not failed.
        """
        if not len(item_ids):
            return ProbeBatch(np.empty(0, np.float32), np.empty(0, bool), [], np.empty(0, bool))
        outputs, rows = self.answers(self.asked(item_ids, cells, repeats)), self.rows(item_ids)
        found, abstained = self._discrepancies([self.questions[row] for row in rows], outputs)
        valid = self._valid(rows, np.asarray(cells, dtype=np.int64), repeats) & ~abstained
        found = np.where(valid, found, np.minimum(found, np.float32(self.threshold)))
        return ProbeBatch(found, found > self.threshold, outputs, valid)

    def _valid(self, rows: Sequence[int], cells: np.ndarray, repeats: np.ndarray | None) -> np.ndarray:
        """Whether the changed words of n questions are still similar enough to the originals: (n,) bool."""
        again = np.zeros(len(rows), dtype=np.int64) if repeats is None else np.asarray(repeats)
        pairs = [
            (self._asking.question(self.questions[row], cell, repeat), self.questions[row].question)
            for row, cell, repeat in zip(rows, cells, again.tolist(), strict=True)
        ]
        alike = [a == b or self.embedder.cosine(a, b) >= self.settings.validity for a, b in pairs]
        return np.array(alike, dtype=bool)

    def _discrepancies(self, items: Sequence[Question], outputs: Sequence[str]) -> tuple[np.ndarray, np.ndarray]:
        """Return discrepancies of n answers, (n,) float32, and where the judge was asked and abstained, (n,) bool."""
        found = np.array([self._measure(i, o) for i, o in zip(items, outputs, strict=True)], dtype=np.float32)
        if self.judge is None:
            return found, np.zeros(len(found), dtype=bool)
        trials = {n: self._trial(items[n], outputs[n]) for n in self._left_to_judge(items, found)}
        return self.judge.settle(found, trials, self.threshold)

    def _left_to_judge(self, items: Sequence[Question], found: np.ndarray) -> list[int]:
        """Return which of n answers the judge decides: those near the threshold, unless their item has a pattern."""
        near = within(found, self.settings.near)
        return [n for n, item in enumerate(items) if near[n] and not item.pattern]

    def _trial(self, item: Question, output: str) -> Trial:
        """Return an answer as the judge reads it; pairs compare it with the answer to the unchanged question."""
        assert self.judge is not None
        baseline = self.answers([self._asking.unchanged(item)])[0] if self.judge.settings.pairwise else ""
        return Trial(about(item), output, baseline)

    def decided(self) -> dict[str, int]:
        """Count the answers to unchanged questions that the judge decides, and those it abstains from."""
        assert self.judge is not None
        outputs = self.answers([self._asking.unchanged(item) for item in self.questions])
        found = np.array([self._measure(i, o) for i, o in zip(self.questions, outputs, strict=True)], dtype=np.float32)
        left = self._left_to_judge(self.questions, found)
        said = self.judge.verdicts([self._trial(self.questions[n], outputs[n]) for n in left])
        none = sum(verdict.acceptable is None for verdict in said)
        return {"unchanged": len(outputs), "decided": len(said) - none, "abstained": none}

    def _measure(self, item: Question, output: str) -> float:
        """Discrepancy of an answer from the nearest expected one by the measure, from 0 to 1."""
        if item.pattern:
            return float(not matches(item.pattern, output))
        if self.settings.measure == JUDGE:
            return 1.0  # the judge decides in any case
        if self.settings.measure == "embedding":
            return min(float(np.clip(1 - self.embedder.cosine(output, answer), 0, 1)) for answer in item.answers)
        return min(MEASURES[self.settings.measure](output, answer) for answer in item.answers)

    def fails_as_it_is(self) -> np.ndarray:
        """Which items fail unchanged, in the order of the table: (items,) bool."""
        outputs = self.answers([self._asking.unchanged(item) for item in self.questions])
        return self._discrepancies(self.questions, outputs)[0] > self.threshold

    def fails_unchanged(self) -> np.ndarray:
        return self.fails_as_it_is()[self.rows(self.items.ids("discover"))]

    # What explorers and people see

    def features(self, item_ids: Sequence[str]) -> np.ndarray:
        """See Task: sentence embeddings of the unchanged questions."""
        return self.embedder([self.questions[row].question for row in self.rows(item_ids)]).astype(np.float64)

    def attributes(self, item_ids: Sequence[str]) -> pd.DataFrame:
        """See Task: what is asked for, the lengths of question and context, and the data's own fields."""
        items = self.items.table
        about = items[[name for name in items if name.startswith(META)]]
        found = [_ASKS.search(one.question) for one in self.questions]
        lengths = {
            name: pd.Series(ranges_of([len(text.split()) for text in texts], "words"), items.index)
            for name, texts in (
                ("question length", [one.question for one in self.questions]),
                ("length of its context", [one.context for one in self.questions]),
            )
        }
        asks = [" ".join(match[0].lower().split()) if match else "other" for match in found]
        return self._told_apart(about.assign(asks=asks, **lengths), item_ids)

    def exhibit(self, item_ids: Sequence[str], cells: np.ndarray) -> list[Exhibit]:
        """See Task: the model's input before and after the change, with both answers."""
        answer, turns = self.probe(item_ids, cells), self.asked(item_ids, cells)
        assert answer.valid is not None
        shown = []
        for n, row in enumerate(self.rows(item_ids)):
            item, before = self.questions[row], self._asking.unchanged(self.questions[row])
            wanted = f"a match of {item.pattern}" if item.pattern else " or ".join(item.answers)
            score = f"discrepancy {answer.discrepancy[n]:.2f}, a failure above {self.threshold:.2f}"
            verdict = self._verdict(item, answer.outputs[n])
            caption = f"expected {wanted}; {score}" + (f"; {verdict}" if verdict else "")
            if not answer.valid[n] and (verdict is None or verdict.acceptable is not None):
                caption = "the change left too little of the question, so it is not held against the model"
            [first] = self.answers([before])
            answers = {"answer to the original": first, "answer to the changed text": answer.outputs[n]}
            shown.append(Exhibit(caption, text=_shown(turns[n]), original=_shown(before), answers=answers))
        return shown

    def _verdict(self, item: Question, output: str) -> Verdict | None:
        """Return the judge's verdict on an answer; None if the judge does not decide it."""
        found = np.array([self._measure(item, output)], dtype=np.float32)
        if self.judge is None or not self._left_to_judge([item], found):
            return None
        return self.judge.verdicts([self._trial(item, output)])[0]

    def notes(self) -> Sequence[str]:
        """See Task: how many questions fail unchanged, and what the measure misses."""
        wrong = self.fails_unchanged()
        told = [f"{wrong.sum()} of {len(wrong)} unchanged questions are answered wrongly; the search finds these, too."]
        if self.settings.measure == "contains":
            told.append("An answer that holds the expected words counts as right, whatever else it says.")
        return [*told, *self._about_judge]


def _questions(items: pd.DataFrame) -> list[Question]:
    """The questions of a table of items."""
    return [
        Question(row.id, row.question, row.context, tuple(row.answers), row.pattern, row.group)
        for row in items.itertuples()
    ]


def _shown(turn: Turn) -> str:
    """Format a question for people."""
    return f"[{turn.system}]\n\n{turn.said}" if turn.system else turn.said
