"""The summarization task without its repairs: what a probe is, and what counts as a failure."""

import copy
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any, ClassVar, Self

import numpy as np
import pandas as pd
import torch

from stages.concepts.catalogue import with_plugins
from stages.concepts.texts import CATALOGUE, TextConcept, TextTransforms, check_text_concepts, text_space
from stages.core.errors import UsageError
from stages.core.files import read_table
from stages.tasks.account import Account, Expected
from stages.tasks.attributes import META, ranges_of
from stages.tasks.contract import SPLITS, Exhibit, Items, Quality, Split, TaskContext
from stages.tasks.judging.verdicts import JUDGE, Judge, Parts
from stages.tasks.language.articles import DATA_LOADERS, Article, ArticleSource, choose_items
from stages.tasks.language.encoders import EMBEDDER_LOADERS, Embedder
from stages.tasks.language.generate import Summarizes
from stages.tasks.language.judged import JudgedTexts
from stages.tasks.language.judges import (
    JUDGE_LOADERS,
    THRESHOLD,
    judge_conflicts,
    judged_origin,
    prepare_judge,
    prepared_judge,
)
from stages.tasks.language.models import SummarizerSource
from stages.tasks.openai_chat import CHARACTERS, expected_requests
from stages.tasks.sources import Source
from stages.tasks.summarization import support
from stages.tasks.summarization.calibrate import BENIGN, NO_OP, NoiseCalibration, measure_noise, space_doubled
from stages.tasks.summarization.config import (
    CalibrationConfig,
    SummaryDiscrepancy,
    SummaryPrepare,
    SummaryRepair,
    conflicts,
)
from stages.tasks.summarization.labelled import RUBRIC, about, known, made
from stages.tasks.summarization.measures import (
    ABSOLUTE,
    NEEDS_REFERENCE,
    SummaryCase,
    Unsupported,
    bleu,
    copied_from_lead,
    degenerate,
    discrepancy,
    rouge_l,
    unsupported_names,
)
from stages.tasks.summarization.served import KNOWN, MODEL_LOADERS, OpenAISummarizer
from stages.tasks.summarization.support import ENTAILMENT_LOADERS, EntailmentSource

CLAIMS = 5  # unsupported claims named per summary, at most


class SummarizerProbes(JudgedTexts):
    """A summarizer under test with its articles.

    A probe summarizes a changed article; the summary is judged against the original article (see `measures`).
    Subclasses can add their own concepts to `catalogue`, see `stages.concepts.texts`.
    """

    init: ClassVar[str] = ".init:ArticlesInit"
    mining: ClassVar[str] = ".init:ArticleTexts"
    usage: ClassVar[str] = ".init:ArticleReader"

    catalogue: ClassVar[Mapping[str, TextConcept]] = with_plugins(CATALOGUE, TextConcept)
    prepare_block = SummaryPrepare
    discrepancy_block = SummaryDiscrepancy
    repair_block = SummaryRepair
    loaders: ClassVar[Mapping[str, Mapping[str, type[Source]]]] = {
        "model": MODEL_LOADERS,
        "data": DATA_LOADERS,
        "embedder": EMBEDDER_LOADERS,
        "entailment": ENTAILMENT_LOADERS,
        "judge": JUDGE_LOADERS,
    }
    rubric = RUBRIC
    dtypes = ("float32", "bfloat16")
    learns_from_examples = heeds_dose = ("lora", "dpo", "full")

    def __init__(
        self,
        context: TaskContext,
        items: pd.DataFrame,
        summarizer: Summarizes,
        embedder: Embedder,
        unsupported: Unsupported = support.unsupported,
        judge: Judge | None = None,
        about_judge: Sequence[str] = (),
        *,
        under_test: bool = True,
    ) -> None:
        """See JudgedTexts.

        Args:
            unsupported: measures how little an article supports a summary, see `SummaryCase`.
            under_test: whether the summaries in `items` are this model's.
        """
        super().__init__(context, items, embedder, judge, about_judge)
        self.summarizer, self.model_hash, self.unsupported = summarizer, summarizer.hash, unsupported
        self.concepts = text_space(context.concepts, self.catalogue)
        self.calibration = NoiseCalibration(pd.DataFrame(items.attrs["calibration"]))
        self.threshold = self._threshold()
        self._transforms = TextTransforms(self.concepts, context.seed, self.catalogue)
        self._articles, self._clean, self._references = (
            items[column].tolist() for column in ("article", "summary", "reference")
        )
        self._asked_again = False  # see `again`
        self._changed: dict[tuple[str, int, int], str] = {}
        # By the article as given to the model: many cells give the same one, and the neutral cell the clean one.
        if under_test:
            self._answers = dict(zip(self._articles, self._clean, strict=True))

    def _threshold(self) -> float:
        settings = self.settings
        compared = sorted(NEEDS_REFERENCE & settings.weights.keys())
        lacking = int((self.items.table["reference"] == "").sum())
        if compared and lacking:
            raise UsageError(
                f"discrepancy.measure: {', '.join(compared)} needs reference summaries, {lacking} of"
                f" {len(self.items.table)} items have none (prepare.data.summary names the field)"
            )
        if settings.threshold == "auto" and JUDGE in settings.weights:
            return THRESHOLD
        if settings.threshold == "auto":
            return self.calibration.threshold(settings.weights, settings.false_alarms)
        return float(settings.threshold)

    def false_alarms(self) -> dict[str, dict[str, Any]]:
        benign = SummaryPrepare.model_validate(dict(self.context.config)).calibrate.benign
        no_op = "a space doubled"
        said = {BENIGN: ", ".join(f"{name} {level}" for name, level in benign.items()) or no_op, NO_OP: no_op}
        if self.settings.weights.keys() <= {ABSOLUTE, JUDGE}:
            return {}  # a summary can be as wrong after a benign edit as before
        alarms = self.calibration.false_alarms(self.settings.weights, self.threshold)
        return {said[condition]: alarm for condition, alarm in alarms.items()}

    # Configuration

    @classmethod
    def conflicts(
        cls,
        context: TaskContext,
        prepare: SummaryPrepare | None,
        discrepancy: SummaryDiscrepancy | None,
    ) -> list[str]:
        errors = check_text_concepts(context.concepts, cls.catalogue)
        if prepare is not None:
            benign = {name: [level] for name, level in prepare.calibrate.benign.items()}
            errors += [
                line.replace("concepts", "prepare.calibrate.benign", 1)
                for line in check_text_concepts(benign, cls.catalogue)
            ]
        if prepare is None or discrepancy is None:
            return errors
        return (
            errors + conflicts(prepare, discrepancy) + judge_conflicts(context, discrepancy.measure, discrepancy.near)
        )

    @classmethod
    def repair_conflicts(cls, context: TaskContext, asked: SummaryRepair) -> list[str]:
        data = context.config.get("data", {})
        if asked.targets == "reference" and isinstance(data, Mapping) and data.get("summary") is None:
            return [
                "restructure.settings.targets: reference needs reference summaries, their field is named by"
                " prepare.data.summary, found none"
            ]
        return []

    @classmethod
    def expected_requests(cls, context: TaskContext) -> Expected | None:
        """See Task: from the requests so far, or else from the length of the articles."""
        config, source = SummaryPrepare.model_validate(dict(context.config)), cls.source(context, "model")
        if not isinstance(source, OpenAISummarizer):
            return None
        counts, most = config.items, config.calibrate.articles
        again = min(counts.discover, most) + min(counts.repair, most)  # after the benign edit, and after the no-op
        preparing = counts.discover + counts.repair + counts.test + 2 * again + 3 * len(KNOWN)

        def guess() -> tuple[float, float]:
            data: ArticleSource = cls.source(context, "data")
            length = np.mean([len(article.text) for article in data.load(context.inputs)[0]])
            frame = len(config.generation.system) + len(config.generation.prompt)
            return float(length + frame) / CHARACTERS, config.generation.max_new_tokens

        return expected_requests(source, context.audit, preparing, guess)

    # Preparation

    @classmethod
    def prepare(cls, context: TaskContext, out_dir: Path) -> dict[str, Any]:
        """See Task: writes model/ and items.parquet; returns items, clean faithfulness and calibration.

        Raises a UsageError when data or weights are missing, unreadable or do not fit each other.
        """
        cls.require_valid(context)
        torch.set_num_threads(context.compute.threads)
        config = SummaryPrepare.model_validate(dict(context.config))
        data: ArticleSource = cls.source(context, "data")
        source: SummarizerSource = cls.source(context, "model")
        articles, skipped = data.load(context.inputs)
        items = choose_items(articles, config.items, context.seed)
        Items(items)  # fails now, not after all summaries, if they are not valid items
        embedder, unsupported = cls._embedder(context), cls._unsupported(context)
        blocks = context.seed, context.config, context.concepts, context.discrepancy, asdict(context.compute)
        account = Account.of(context.audit, *blocks)
        source.build(context.inputs, out_dir / "model", config.generation, context.compute.dtype, account)
        judged = prepare_judge(context, out_dir, cls.rubric, known(articles), lambda count: made(articles, count))
        summarizer = source.load(out_dir / "model", context.compute, account=account)
        benign = cls._benign(context, config.calibrate)
        started = time.monotonic()
        items, calibration = measure_noise(items, summarizer, embedder, benign, config.calibrate.articles, unsupported)
        took = (time.monotonic() - started) / (len(items) + len(calibration.records))
        items.attrs["skipped"] = skipped  # kept in the file, so that the report can list them
        items.attrs["calibration"] = calibration.records.to_dict("records")
        items.to_parquet(out_dir / "items.parquet", compression="zstd", index=False)
        # Fails now, not stages later, if the threshold cannot be set.
        task = cls(context, items, summarizer, embedder, unsupported, judged and judged[0])
        by_split = items.groupby("split")
        broken = [bool(degenerate(s, summarizer.unfinished(s))) for s in items["summary"]]
        return {
            "items": {split: int((items["split"] == split).sum()) for split in SPLITS if split in by_split.groups},
            "clean_faithfulness": {s: float(v) for s, v in by_split["faithfulness"].mean().items()},
            "clean_unsupported": {s: float(task.clean_unsupported(s).mean()) for s in SPLITS if s in by_split.groups},
            "clean_degenerate": float(np.mean(broken)),
            "clean_words": float(items["summary"].str.split().str.len().mean()),
            "calibration": calibration.quoted(),
            "parameters": summarizer.form.parameters,
            "origin": judged_origin(cls.origin(context), judged),
            "skipped": len(skipped),
            "cut": int(items["cut"].sum()),
            "seconds_per_probe": took,
            **task.judge_numbers(judged),
        }

    @classmethod
    def _benign(cls, context: TaskContext, config: CalibrationConfig) -> Callable[[str, str], str]:
        """Return the benign edit: (article, item) -> changed article."""
        if not config.benign:
            return lambda article, item: space_doubled(article)
        space = text_space({name: [level] for name, level in config.benign.items()}, cls.catalogue)
        transforms = TextTransforms(space, context.seed, cls.catalogue)
        cell = np.zeros(len(space), dtype=np.int64)
        return lambda article, item: transforms(article, item, cell)

    @classmethod
    def load(cls, context: TaskContext, prepared: Path, model: Path | None = None) -> Self:
        """See Task; `model` may be an adapter of the model under test."""
        items, base = read_table(prepared / "items.parquet"), prepared / "model"
        folder = model or base
        source: SummarizerSource = cls.source(context, "model")
        summarizer = source.load(folder, context.compute, base, Account.of(context.audit))
        under_test = folder.resolve() == base.resolve()
        measures = cls._embedder(context), cls._unsupported(context)
        judged = prepared_judge(context, prepared, cls.rubric)
        return cls(context, items, summarizer, *measures, *judged, under_test=under_test)

    @classmethod
    def _unsupported(cls, context: TaskContext) -> Unsupported:
        source: EntailmentSource | None = cls.source(context, "entailment")
        return support.unsupported if source is None else source.load(context.inputs, context.compute.device)

    # Probing

    def changed(self, item_ids: Sequence[str], cells: np.ndarray, repeats: np.ndarray | None = None) -> list[str]:
        cells = np.asarray(cells, dtype=np.int64)
        repeats = np.zeros(len(item_ids), dtype=np.int64) if repeats is None else np.asarray(repeats)
        texts = []
        for item, cell, number, repeat in zip(item_ids, cells, self.concepts.flat(cells), repeats, strict=True):
            key = (item, int(number), int(repeat))
            if key not in self._changed:
                article = self._articles[self._rows[item]]
                self._changed[key] = self._transforms(article, item, cell, int(repeat))
            texts.append(self._given(self._changed[key]))
        return texts

    def _given(self, article: str) -> str:
        return space_doubled(article) if self._asked_again else article

    def query(self, inputs: Sequence[str]) -> list[str]:
        return self.summarizer.summarize(inputs)

    def clean(self, rows: Sequence[int]) -> list[str]:
        return [self._clean[row] for row in rows]

    def is_valid(self, row: int, cell: np.ndarray, repeat: int, given: str) -> bool:
        return self.embedder.cosine(given, self._articles[row]) >= self.settings.validity

    def measured(self, row: int, output: str) -> float:
        """See JudgedTexts; 1 if nobody could use the summary."""
        if self.broken(output) or JUDGE in self.settings.weights:  # the judge decides in any case
            return 1.0
        case = SummaryCase(self._articles[row], self._clean[row], output, self._references[row], self.unsupported)
        return discrepancy(case, self.settings.weights, self.embedder)

    def is_plain(self, row: int, output: str) -> bool:
        return bool(self.broken(output))

    def about(self, row: int) -> Parts:
        return about(self._articles[row])

    @staticmethod
    def about_entry(entry: Article) -> Parts:
        return about(entry.text)

    def broken(self, output: str) -> str:
        """Why nobody could use an output; "" if it can be used."""
        return degenerate(output, self.summarizer.unfinished(output))

    def wrong(self, summary: str, article: str) -> bool:
        """Whether a summary must not be learnt: nobody could use it, or it fails by the audit's absolute measure."""
        absolute = ABSOLUTE in self.settings.weights
        return bool(self.broken(summary)) or (absolute and self.unsupported(summary, article) > support.THRESHOLD)

    def clean_unsupported(self, split: Split) -> np.ndarray:
        """Which summaries of unchanged articles say what the article does not: (n,) bool, by the absolute measure.

        They are those of the model under test, with which relative measures compare.
        """
        rows = self.rows(self.items.ids(split))
        found = [self.unsupported(self._clean[row], self._articles[row]) for row in rows]
        return np.array(found) > support.THRESHOLD

    def fails_unchanged(self) -> np.ndarray:
        """See Task; by a measure relative to its own clean summary, an unchanged article cannot fail."""
        absolute = self.settings.weights.keys() & {ABSOLUTE, JUDGE}
        return self.failures(self.rows(self.items.ids("discover")) if absolute else [])

    def clean_quality(self, split: Split) -> Quality:
        """See Task: similarity of the unchanged articles and this model's summaries of them."""
        ids = self.items.ids(split)
        articles = [self._articles[row] for row in self.rows(ids)]
        outputs = self.answers([self._given(article) for article in articles])
        values = [self.embedder.cosine(o, a) for o, a in zip(outputs, articles, strict=True)]
        return Quality("faithfulness of clean summaries", np.array(values, dtype=np.float64), ids)

    # What explorers and people see

    def features(self, item_ids: Sequence[str]) -> np.ndarray:
        return self.embedder([self._articles[row] for row in self.rows(item_ids)]).astype(np.float64)

    def attributes(self, item_ids: Sequence[str]) -> pd.DataFrame:
        items = self.items.table
        about = items[[name for name in items if name.startswith(META)]]
        lengths = pd.Series(ranges_of([len(article.split()) for article in self._articles], "words"), items.index)
        return self._told_apart(about.assign(length=lengths), item_ids)

    def exhibit(self, item_ids: Sequence[str], cells: np.ndarray) -> list[Exhibit]:
        answer = self.probe(item_ids, cells)
        assert answer.valid is not None
        shown, rows = [], self.rows(item_ids)
        verdicts = self.verdicts(rows, answer.outputs)
        for n, (row, text, verdict) in enumerate(zip(rows, self.changed(item_ids, cells), verdicts, strict=True)):
            score, reason = float(answer.discrepancy[n]), self.broken(answer.outputs[n])
            caption = f"discrepancy {score:.2f}, a failure above {self.threshold:.2f}"
            if ABSOLUTE in self.settings.weights and self.unsupported is support.unsupported:
                lacking = support.unsupported_claims(answer.outputs[n], self._articles[row])
                caption += "".join(f"; {claim.kind} not supported: {claim.words}" for claim in lacking[:CLAIMS])
            if verdict is not None:
                caption += f"; {verdict}"
            if reason:
                caption = f"{reason}: always a failure"
            if not answer.valid[n] and (verdict is None or verdict.acceptable is not None):
                caption = "the change left too little of the article, so it is not held against the model"
            answers = {
                "summary of the original": self._clean[row],
                "summary of the changed article": answer.outputs[n],
            }
            shown.append(Exhibit(caption, text=text, original=self._articles[row], answers=answers))
        return shown

    def notes(self) -> Sequence[str]:
        """See Task: whether the measure sees what is wrong with summaries of unchanged articles."""
        wrong = self.clean_unsupported("discover")
        told = (
            f"{wrong.sum()} of {len(wrong)} summaries of unchanged articles seem to say what their article does not"
            " support"
        )
        if ABSOLUTE in self.settings.weights:
            return [f"By the measure {ABSOLUTE} alone, {told}.", *self._about_judge]
        return [
            "Where answers are compared with the model's own summaries of unchanged articles, or calibrated on them,"
            f" what is wrong there already counts as no failure. By the measure {ABSOLUTE}, which needs neither,"
            f" {told}.",
            *self._about_judge,
        ]

    # Further measures

    def measure(self, item_ids: Sequence[str], cells: np.ndarray, outputs: Sequence[str]) -> pd.DataFrame:
        """See Task: measures in addition to `discrepancy`, for any answers to these probes."""
        rows = self.rows(item_ids)
        changed = self.changed(item_ids, cells)
        own = self.answers([self._given(self._articles[row]) for row in rows])
        found = pd.DataFrame(
            [
                self._measures(self._articles[row], article, clean, output, self._references[row])
                for row, article, clean, output in zip(rows, changed, own, outputs, strict=True)
            ]
        )
        if self.judge is None:
            return found
        said = self.verdicts(rows, outputs)
        return found.assign(
            **{
                "decided by the judge": [float(v is not None and v.acceptable is not None) for v in said],
                "left open by the judge": [float(v is not None and v.acceptable is None) for v in said],
            }
        )

    def _measures(self, original: str, changed: str, clean: str, output: str, reference: str) -> dict[str, float]:
        faithful = self.embedder.cosine(output, original)
        return {
            "faithfulness": faithful,
            "faithfulness lost against the own clean summary": self.embedder.cosine(clean, original) - faithful,
            "distance from the own clean summary": 1 - self.embedder.cosine(clean, output),
            "ROUGE-L with the own clean summary": rouge_l(output, clean),
            "ROUGE-L with the reference": rouge_l(output, reference) if reference else np.nan,
            "BLEU with the reference": bleu(output, reference) if reference else np.nan,
            "unsupported by the article": self.unsupported(output, original),
            "names and numbers not in the article": unsupported_names(output, original),
            "copied from the lead": copied_from_lead(output, changed),
            "words": float(len(output.split())),
            "degenerate": float(bool(self.broken(output))),
        }

    def baselines(self, item_ids: Sequence[str], cells: np.ndarray) -> Mapping[str, Sequence[str]]:
        """See Task: the first words of the changed article, as many as a clean summary has on average."""
        words = round(float(np.mean([len(summary.split()) for summary in self._clean])))
        first = [" ".join(text.split()[:words]) for text in self.changed(item_ids, cells)]
        return {f"first {words} words of the changed article": first}

    def again(self) -> Self:
        """See Task: the same model with a space doubled in each article."""
        other = copy.copy(self)
        other._asked_again = True
        other._answers = {}
        return other
