"""Repair of a summarizer in chosen failure modes.

Four methods:

- lora: a low-rank adapter (Hu et al. 2022) learns to give the same good summary of an article however the target modes
  change it, by default the model's own of the unchanged article. A clean control trains on the same summaries of
  unchanged articles: such training alone changes a model, and only what the repair gains beyond it is due to the
  changes.
- dpo: such an adapter learns to prefer that summary to a bad one (Rafailov et al. 2023): the model's own of the changed
  article, or the good one with a name, number or negation made wrong. Its clean control learns the same preferences.
- full: all weights learn what an adapter would; for small models, as each training is a whole copy of the model.
- normalise: nothing is trained; a change that a text shows is undone before the model reads it, and a clean control
  undoes nothing. An adapter can be trained on normalised texts as well; its control then normalises in the same way.

A repaired model is written to its own folder and does not replace the base: what was trained, and faded.json, which
names the base by its content hash.
"""

import copy
import json
from collections import ChainMap
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from safetensors.torch import load_file

from stages.core.errors import UsageError
from stages.params import checked
from stages.tasks.base import known_attributes
from stages.tasks.contract import RepairPlan, RepairRecord
from stages.tasks.hub import repository_of
from stages.tasks.language.form import ADAPTER, ModelForm, save_form
from stages.tasks.language.generate import LanguageModel, Summarizes, greedy, with_normalisations, with_weights
from stages.tasks.language.models import load_summarizer
from stages.tasks.language.normalise import normaliser
from stages.tasks.language.training import LanguageTraining, verify
from stages.tasks.summarization.config import SummaryRepair
from stages.tasks.summarization.pairs import (
    GOOD,
    NO_ITEMS,
    Lessons,
    TrainingPair,
    build_must_pass,
    build_pairs,
)
from stages.tasks.summarization.probes import SummarizerProbes
from stages.tasks.training import PairSampler, interpolate, scale_adapter, write_card, write_loader

TRIED = 50  # articles of each target mode to try a normalisation on
MERGED = "merged"  # folder of the whole model, with an adapter
COMPARED = 3  # lessons on which to compare the written model with the one in memory


def repair(task: SummarizerProbes, plan: RepairPlan, out_dir: Path) -> RepairRecord:
    """Make a repaired copy of the task's model and write it with its card; see the module for the methods.

    Raises a UsageError when the settings are wrong, there is nothing to repair or to learn from, or nothing was learnt.
    """
    settings = checked(SummaryRepair, plan.settings, "restructure.settings")
    plan.regions(task.concepts)
    if settings.method == "normalise":
        numbers, curve = _normalise(task, plan, settings, out_dir), pd.DataFrame({"step": [], "loss": []})
    else:
        numbers, curve = _train(task, plan, settings, out_dir)
    if plan.draft:
        return RepairRecord(settings.method, len(curve), {}, curve)
    write_card(
        out_dir,
        __file__,
        plan,
        base=task.summarizer.hash,
        form=task.summarizer.form,
        settings=settings,
        steps=len(curve),
        examples=plan.examples,
        good=GOOD,
        space=task.concepts,
        numbers=numbers,
    )
    if settings.method != "normalise":  # which is Faded's own code
        form = task.summarizer.form.model_copy(update={"normalise": settings.normalise})
        write_loader(
            out_dir,
            __file__,
            adapter=settings.method != "full",
            name=repository_of(form.origin),
            audit=task.context.audit,
            form=form,
            asked=form.generation,
            auto="AutoModelForSeq2SeqLM" if form.kind == "seq2seq" else "AutoModelForCausalLM",
            settings=greedy(form),
        )
    return RepairRecord(settings.method, len(curve), numbers, curve)


def move(task: SummarizerProbes, folder: Path, share: float, out_dir: Path) -> None:
    """Write a repaired model moved part of the way; see `Summarization.move`.

    Raises a UsageError when nothing was trained.
    """
    base = Path(with_weights(task.summarizer).model.name_or_path)
    if not (folder / ADAPTER).exists():
        original = [load_file(path) for path in base.glob("*.safetensors")]
        interpolate(folder, share, out_dir, ChainMap(*original))
        return
    scale_adapter(folder, share, out_dir)
    if (folder / MERGED).exists() and share < 1.0:
        load_summarizer(out_dir, task.context.compute, base).model.save_pretrained(out_dir / MERGED)


def _normalise(task: SummarizerProbes, plan: RepairPlan, settings: SummaryRepair, out_dir: Path) -> dict[str, Any]:
    """Write which changes are undone, and return how often that changes repair articles.

    Raises a UsageError when it changes no article of any target mode.
    """
    undo = normaliser(settings.normalise)
    items = task.items.ids("repair")
    if not items:
        raise UsageError(NO_ITEMS)
    rng = np.random.default_rng([plan.seed, 7])
    undone = {}
    for target in plan.targets:
        rows, cells = PairSampler(task.concepts, [target], known_attributes(task, items)).draw(TRIED, rng)
        asked = [items[row] for row in rows.tolist()]
        undone[target.id] = float(np.mean([undo(text) != text for text in task.changed(asked, cells)]))
    if not any(undone.values()):
        modes = " or of ".join(f"{target.id} ({target.region.describe(task.concepts)})" for target in plan.targets)
        raise UsageError(
            f"restructure.settings.normalise: {', '.join(settings.normalise)} changes none of {TRIED} articles of"
            f" {modes}; choose others, or method lora"
        )
    out_dir.mkdir(parents=True, exist_ok=True)
    save_form(_form(task.summarizer, plan, settings), out_dir)
    articles = task.items.table["article"].iloc[task.rows(items)].tolist()
    return {
        "items": len(items),
        "undone": undone,
        "clean_articles_changed": sum(undo(article) != article for article in articles),
    }


def _train(
    task: SummarizerProbes, plan: RepairPlan, settings: SummaryRepair, out_dir: Path
) -> tuple[dict[str, Any], pd.DataFrame]:
    """Train, write the result and check it; return numbers for the card, and the learning curve."""
    under_test = with_weights(task.summarizer)
    pairs = build_pairs(task, plan, settings)
    must_pass = build_must_pass(task, plan, settings)
    lessons = Lessons(task, plan, settings, pairs, must_pass)
    form = _form(under_test, plan, settings)
    model, undo = copy.deepcopy(under_test.model), with_normalisations(form)
    learner = LanguageModel(model, under_test.tokenizer, form, under_test.compute, under_test.hash, undo)
    checkpoint = plan.scratch / "training.safetensors" if plan.scratch else None
    steps = plan.steps(settings.steps)
    training = LanguageTraining(learner, lessons, settings, steps, plan.seed, checkpoint)
    curve = training.run(f"{'control' if plan.control else 'repair'}, {settings.method}")

    out_dir.mkdir(parents=True, exist_ok=True)
    training.save(out_dir)
    save_form(learner.form, out_dir)
    learnt = "".join(json.dumps(asdict(pair), ensure_ascii=False) + "\n" for pair in (*pairs, *must_pass))
    (out_dir / "pairs.jsonl").write_text(learnt, encoding="utf-8")
    if plan.draft:
        return {}, curve
    learner.model = training.whole()
    base = Path(under_test.model.name_or_path)
    verify(out_dir, base, under_test, learner, lessons(0)[:COMPARED])
    if settings.merged:
        learner.model.save_pretrained(out_dir / MERGED)
        learner.tokenizer.save_pretrained(out_dir / MERGED)
        save_form(learner.form.model_copy(update={"base": None}), out_dir / MERGED)
    numbers = _numbers(task, plan, pairs, curve, training)
    return numbers | ({"must_pass_learnt": len(must_pass)} if plan.must_pass else {}), curve


def _form(under_test: Summarizes, plan: RepairPlan, settings: SummaryRepair) -> ModelForm:
    """Form of the repaired model: that of the model under test, with the normalisations.

    A clean control has them as well, unless they are the whole repair, so that it differs in one thing.
    """
    names = () if plan.control == "clean" and settings.method == "normalise" else settings.normalise
    return under_test.form.model_copy(update={"base": under_test.hash, "normalise": names})


def _numbers(
    task: SummarizerProbes,
    plan: RepairPlan,
    pairs: Sequence[TrainingPair],
    curve: pd.DataFrame,
    training: LanguageTraining,
) -> dict[str, Any]:
    some = max(1, len(curve) // 10)
    items = task.items.ids("repair")
    return {
        "items": len(items),
        "articles": len({pair.item for pair in pairs}.intersection(items)),
        "target_faithfulness": float(np.mean([pair.faithfulness for pair in pairs])),
        "examples": _told(plan),
        "trained_parameters": sum(tensor.numel() for tensor in training.trained.values()),
        "loss_first": float(curve["loss"].head(some).mean()),
        "loss_last": float(curve["loss"].tail(some).mean()),
    }


def _told(plan: RepairPlan) -> dict[str, int]:
    """Count what examples taught; with dpo a praised answer teaches nothing, as it is preferred to no other."""
    examples = plan.examples
    corrected = sum(e.corrected is not None for e in examples)
    praised = sum(e.corrected is None and e.rating is not None and e.rating >= GOOD for e in examples)
    praised = 0 if plan.settings["method"] == "dpo" else praised
    return {"corrected": corrected, "praised": praised, "not_learnt": len(examples) - corrected - praised}
