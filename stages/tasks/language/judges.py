"""Models that can judge answers: a chat model with local weights or a served one, but never the model under test.

A judge is stored in prepare's assets, like the model under test in its folder, with its calibration beside it. A served
judge has its own account of answers and cost.
"""

import contextlib
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, ClassVar

from stages.core.errors import UsageError
from stages.core.files import content_hash, local_file, read_json, write_json
from stages.params.network import is_served
from stages.tasks.account import Account, Expected, request_key
from stages.tasks.contract import ASSETS, Compute, TaskContext
from stages.tasks.judging.calibration import About, JudgeCalibration, LabelledAnswer, calibrate, read_labelled
from stages.tasks.judging.verdicts import JUDGE, AnswerToJudge, Asks, Judge, JudgeSettings
from stages.tasks.language.chats import OpenAIChat, ServedChat, generation_of
from stages.tasks.language.form import GenerationConfig
from stages.tasks.language.generate import Turn
from stages.tasks.language.models import ChatSource, PackageModel, TransformersModel
from stages.tasks.openai_chat import CHARACTERS, ChatConfig, ChatEndpoint, expected_requests
from stages.tasks.rows import count_lines
from stages.tasks.sources import collect, parse_source

WHERE = "prepare.judge"
NEAR = "discrepancy.near"
THRESHOLD = 0.5  # of the measure `judge`, which is 0 for accepted and 1 for rejected answers
CALIBRATION = "calibration.json"
# Questions that identify a served judge; they are in no data set.
_KNOWN = (
    AnswerToJudge(
        (("question", "When does the ferry to Harrow leave?"), ("expected", "ten past nine")), "At 9:10.", "9:10"
    ),
    AnswerToJudge((("question", "Name the larger of 4,071 and 4,107."), ("expected", "4,107")), "4,071", "4,107"),
    AnswerToJudge(
        (("question", "Which is a fruit: spanner or quince?"), ("expected", "quince")), "The quince.", "A spanner."
    ),
)


class JudgeSource(ChatSource, JudgeSettings):
    """Base of the loaders of judges: a chat model, how it is asked, and what it is calibrated on."""

    def errors(self, inputs: Path) -> list[str]:
        found, name = _of_judge(super().errors(inputs)), self.labelled  # type: ignore[safe-super]
        return found if name is None else found + collect(lambda: local_file(inputs, name, f"{WHERE}.labelled"))

    def asks(self, folder: Path, compute: Compute, account: Account) -> Asks:
        """Read a folder that `build` wrote; errors name the judge and not the model under test."""
        with _named():
            model = self.chat(folder, compute, account)

        def asks(turns: Sequence[tuple[str, str]]) -> list[str | None]:
            with _named():
                given = [Turn(*turn) for turn in turns]
                fits = [model.room is None or model.tokens(turn) <= model.room for turn in given]
                replies = iter(model.answer([turn for turn, fit in zip(given, fits, strict=True) if fit]))
                return [next(replies) if fit else None for fit in fits]

        return asks


class PackageJudge(JudgeSource, PackageModel):
    """{package: NAME, file: X.gguf}: a GGUF file that ships in an installed package."""


class TransformersJudge(JudgeSource, TransformersModel):
    """{transformers: ID_OR_FOLDER, revision: COMMIT}: a folder under data/<audit>/inputs, or a model of the hub."""


class OpenAIJudge(JudgeSource, OpenAIChat):
    """{openai: BASE_URL, model: NAME, key_env: VARIABLE, ...}: a chat model behind OpenAI's API."""

    known_are: ClassVar[str] = "answers to judge"

    def known(self, generation: GenerationConfig) -> list[Turn]:
        plain = Judge(lambda: _never, self, "")
        return [Turn(*turn) for trial in _KNOWN for turn in plain.turns(trial)[:1]]


JUDGE_LOADERS: Mapping[str, type[JudgeSource]] = {
    "package": PackageJudge,
    "transformers": TransformersJudge,
    "openai": OpenAIJudge,
}


def _never(turns: Sequence[tuple[str, str]]) -> list[str | None]:
    raise AssertionError("only its words are asked for")


# The judge of an audit


def judge_source(context: TaskContext) -> JudgeSource | None:
    """Return the judge that an audit names, or None."""
    block = context.config.get("judge")
    return None if block is None else parse_source(block, JUDGE_LOADERS, WHERE)


def _account(context: TaskContext, *settings: object) -> Account:
    """Return the account of an audit's judge; names of audits have no dots, so it cannot clash with theirs."""
    return Account.of(f"{context.audit}.judge", *settings)


def prepare_judge(
    context: TaskContext, out_dir: Path, rubric: str, known: About, made: Callable[[int], Sequence[LabelledAnswer]]
) -> tuple[Judge, JudgeCalibration] | None:
    """Write the judge's folder and calibrate it, before it decides anything.

    Raises a UsageError when labelled answers are unusable or too few, or the judge fails its calibration, or is the
    model under test; an InfrastructureError when it cannot be reached.

    Args:
        out_dir: data/<audit>/prepare, which already contains the model under test.
        rubric: used if the settings have none.
        known: finds the items that people's labelled answers are about.
        made: makes labelled answers, so many at most, if there are none by people.
    """
    if (source := judge_source(context)) is None:
        return None
    folder, where = out_dir / ASSETS / "judge", f"{WHERE}.labelled"
    if source.labelled is None:
        labelled = made(source.answers)
    else:
        labelled = read_labelled(local_file(context.inputs, source.labelled, where), known, where)
    account = _account(context, context.seed, context.config, context.discrepancy, context.compute.dtype)
    generation = generation_of("", max_new_tokens=source.max_new_tokens, rows=source.rows)
    with _named():
        source.build(context.inputs, folder, generation, context.compute.dtype, account)
        if (weights := _weights(folder)) is not None and weights == _weights(out_dir / "model"):
            raise UsageError(_same("both have the same weights"))
    asks = source.asks(folder, context.compute, account)
    judge, again = Judge(lambda: asks, source, rubric), None
    if isinstance(source, OpenAIJudge) and not source.deterministic:
        again = Judge(lambda: _asked_again(source, folder, account), source, rubric)
    found = calibrate(judge, labelled, again)
    if (refusals := found.refusals()) and not source.accept_uncalibrated:
        listed = "".join(f"\n- {refusal}" for refusal in refusals)
        raise UsageError(
            f"{WHERE}: {source.origin(context.inputs)} cannot be used as a judge:{listed}\nChoose another model, change"
            " the rubric, or set prepare.judge.accept_uncalibrated: true; every report will then say so"
        )
    write_json(folder / CALIBRATION, {"said": found.sentences(), "refusals": refusals})
    return judge, found


class _Again(ChatEndpoint):
    """A served model that is asked the same once more; its second answers are recorded beside the first."""

    def _key_of(self, request: Mapping[str, Any]) -> str:
        return request_key(super()._key_of(request), "again")


def _asked_again(source: OpenAIJudge, folder: Path, account: Account) -> Asks:
    _, form, content = source.opened(folder, None, account)
    chat = ServedChat(_Again(source, account), form, content)

    def asks(turns: Sequence[tuple[str, str]]) -> list[str | None]:
        with _named():
            return [*chat.answer([Turn(*turn) for turn in turns])]

    return asks


def prepared_judge(context: TaskContext, prepared: Path, rubric: str) -> tuple[Judge | None, list[str]]:
    """Return the judge of a prepared audit, or None, and sentences about it for the report.

    Its model is loaded or queried when the first answer needs it.

    Args:
        prepared: data/<audit>/prepare.
        rubric: used if the settings have none.
    """
    if (source := judge_source(context)) is None:
        return None, []
    folder, near = prepared / ASSETS / "judge", context.discrepancy.get("near")
    found = read_json(folder / CALIBRATION)
    which = f"answers whose discrepancy by the measure is from {near[0]:g} to {near[1]:g}" if near else "all answers"
    notes = [f"A language model, {source.origin(context.inputs)}, judges {which}.", *found["said"]]
    if refusals := found["refusals"]:
        notes.append(f"This judge failed its calibration but decides anyway: {'; '.join(refusals)}.")
    return Judge(lambda: source.asks(folder, context.compute, _account(context)), source, rubric), notes


def judged_origin(origin: dict[str, str], judged: tuple[Judge, JudgeCalibration] | None) -> dict[str, str]:
    """Add to the model's origin, which every report prints, that its judge failed the calibration, if it did."""
    if judged is None or not judged[1].refusals():
        return origin
    return origin | {"model": f"{origin['model']}, judged by {origin['judge']}, which failed its calibration"}


def judge_conflicts(context: TaskContext, measure: object, near: object) -> list[str]:
    """List conflicts between `prepare.judge` and `discrepancy:`, and whether the judge is the model under test.

    Args:
        measure: `discrepancy.measure`.
        near: `discrepancy.near`, or None.
    """
    block, decides = context.config.get("judge"), measure == JUDGE
    if block is None:
        asked = "discrepancy.measure: judge" if decides else f"{NEAR}" if near is not None else ""
        return [f"{asked} needs a judge: prepare.judge names a model, found none"] if asked else []
    found = []
    if decides and near is not None:
        found.append(f"{NEAR} has no effect: with the measure judge, the judge decides all answers")
    if not decides and near is None:
        found.append(
            f"prepare.judge has no effect: expected discrepancy.measure: judge, or {NEAR}: [LOW, HIGH], between which"
            " discrepancies are left to the judge"
        )
    return found + _same_model(context, block)


def _same_model(context: TaskContext, block: object) -> list[str]:
    model = context.config.get("model")
    if not isinstance(model, Mapping) or not isinstance(block, Mapping):
        return []
    if is_served(model) and is_served(block):
        one, other = (_address(each) for each in (model, block))
        return [_same(f"both are {one[1]} behind {one[0]}")] if one == other and one[1] else []
    for keys in (("package", "file"), ("transformers",)):
        if all(key in model and model.get(key) == block.get(key) for key in keys):
            return [_same(f"both are {' '.join(str(model[key]) for key in keys)}")]
    folders = [_folder(context.inputs, each) for each in (model, block)]
    if None not in folders and (weights := _weights(folders[0])) is not None and weights == _weights(folders[1]):
        return [_same("both have the same weights")]
    return []


def _address(block: Mapping[str, Any]) -> tuple[str, str]:
    """Return a served model's address and its name there; ("", "") for an invalid block, reported elsewhere."""
    try:
        config = ChatConfig.model_validate({k: v for k, v in block.items() if k in ("openai", "model")})
    except ValueError:
        return "", ""
    return config.base.rstrip("/"), config.model


def _folder(inputs: Path, block: Mapping[str, Any]) -> Path | None:
    name = block.get("transformers")
    return folder if isinstance(name, str) and (folder := inputs / name).is_dir() else None


def _weights(folder: Path | None) -> str | None:
    """Hash of the weights in a folder; None if there are none."""
    files = sorted(folder.glob("*.safetensors")) if folder is not None else []
    return content_hash(files) if files else None


def _same(how: str) -> str:
    return f"{WHERE}: the judge is the model under test ({how}); expected another model: none may judge itself"


def expected_judgements(
    context: TaskContext, answers: int, rubric: str, length: Callable[[], float]
) -> Expected | None:
    """Estimate the requests to the judge; None if it is not served.

    Args:
        answers: number of answers that prepare has judged, at most.
        rubric: used if the settings have none.
        length: returns the mean number of characters of what an answer is about.
    """
    source = judge_source(context)
    if not isinstance(source, OpenAIJudge):
        return None
    labelled = source.answers
    if source.labelled is not None:
        labelled = count_lines(local_file(context.inputs, source.labelled, f"{WHERE}.labelled"), sys.maxsize)

    def guess() -> tuple[float, float]:
        frame = sum(map(len, Judge(lambda: _never, source, rubric).turns(_KNOWN[0])[0]))
        return (frame + length()) / CHARACTERS, source.max_new_tokens

    passes = 1 if source.deterministic else 2  # over the labelled answers
    preparing = 3 * len(_KNOWN) + source.times * (answers + passes * labelled)
    expected = expected_requests(source, f"{context.audit}.judge", preparing, guess)
    return replace(expected, by_probe=source.times)


# Messages


@contextlib.contextmanager
def _named() -> Iterator[None]:
    """Make errors of a model name the judge and not the model under test."""
    try:
        yield
    except UsageError as error:
        raise UsageError("\n".join(_of_judge([str(error)]))) from error


def _of_judge(lines: Sequence[str]) -> list[str]:
    said = [line.replace("prepare.model", WHERE) for line in lines]
    return [line.replace("prepare.generation", WHERE) for line in said]
