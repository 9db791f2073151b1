"""Models that are asked as they are: a skops or an ONNX file, or a function in a module beside params.yaml.

They get rows in the columns and with the types of the data file, and answer with labels or probabilities. They are
searched and reported, but not repaired. Nothing is unpickled.
"""

import shutil
from abc import abstractmethod
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import pandas as pd
from pydantic import Field

from stages.core.errors import UsageError, did_you_mean
from stages.core.files import content_hash, local_file, read_json, write_json
from stages.tasks.labels import ClassOrder, spelled
from stages.tasks.load import own_function, own_module_error
from stages.tasks.sources import Source, collect
from stages.tasks.tabular.data import Table, column_kind

Ask = Callable[[pd.DataFrame], Any]
"""Rows (n, d) -> labels (n,) or probabilities (n, classes)."""

FUNCTION = r"\w+(\.\w+)*:\w+(\.\w+)*"
NO_ANSWER = "no valid answer"  # the class of answers that are not numbers, or not one of the classes
TRUSTED = ("sklearn.", "lightgbm.", "xgboost.", "collections.OrderedDict", "collections.defaultdict", "numpy.dtype")
"""Beginnings of the types that a skops file may have, besides those that skops trusts by itself."""
_KNOWN = 20  # number of rows whose answers are stored
_TOLERANCE = 1e-5  # of a probability
_SHOWN = 200  # characters of an error
_NUMBERS: Mapping[str, Any] = {
    "tensor(float)": np.float32,
    "tensor(double)": np.float64,
    "tensor(int64)": np.int64,
    "tensor(int32)": np.int32,
    "tensor(bool)": np.bool_,
}


class OwnModelSource(Source):
    """A model that is asked as it is."""

    rows: ClassVar[int] = 0  # rows it is fitted on
    key: ClassVar[str]
    classes: list[str] = Field(default_factory=list, description="in the order of its probabilities")

    @property
    def named(self) -> str:
        """The file or the function."""
        return str(getattr(self, self.key))

    @abstractmethod
    def opened(self, folder: Path) -> tuple[Ask, Sequence[Any]]:
        """Return the model, whose file is in a folder, and names of its classes if it has them."""

    def errors(self, inputs: Path) -> list[str]:
        return collect(lambda: local_file(inputs, self.named, f"prepare.model.{self.key}"))

    def repair_errors(self, audit: str, settings: Mapping[str, Any]) -> list[str]:
        return [
            f"restructure: Faded did not fit {self.named} and cannot fit it again, so it is not repaired: remove"
            f" {audit} from repairs:, and the audit ends with its landscape"
        ]

    def origin(self, inputs: Path) -> str:
        return f"{self.named}, content {content_hash([local_file(inputs, self.named, '')])}"

    def lacks(self, labels: Sequence[str], classes: Sequence[str]) -> str:
        """Return what to say if the data have labels that are not classes of the model."""
        return f"prepare.model: {self.named} has no class {', '.join(labels)}; its classes are {', '.join(classes)}"

    def made(
        self, inputs: Path, seed: int, table: Table, fitted_on: np.ndarray, used: np.ndarray, folder: Path
    ) -> "OwnModel":
        """Write the model to a folder, after asking it for the unchanged rows that the audit uses.

        Raises a UsageError if it cannot be read, or does not answer as it should.
        """
        folder.mkdir()
        if self.key != "function":
            shutil.copyfile(local_file(inputs, self.named, f"prepare.model.{self.key}"), folder / Path(self.named).name)
        ask, named = self.opened(folder)
        classes = [spelled(name) for name in named] or sorted(set(table.labels))
        model = OwnModel(self.named, classes, ask, ordered=bool(named))
        rows = table.rows.iloc[used].reset_index(drop=True)
        answers = model.tried(rows)
        if self.classes and model.shares:
            _require_order(answers[:, :-1].argmax(1), table.labels[used], classes)
        known = answers[:_KNOWN].tolist()
        about = {"model": self.model_dump(), "classes": classes, "shares": model.shares, "known": known}
        write_json(folder / "model.json", about)
        return model


class SkopsFile(OwnModelSource):
    """`skops: model.skops`: a scikit-learn estimator or pipeline, also of LightGBM or XGBoost, as skops wrote it."""

    key = "skops"
    skops: str = Field(pattern=r"\.skops$")
    trusted: list[str] = Field(default_factory=list, description="types in it that skops does not trust by itself")

    def errors(self, inputs: Path) -> list[str]:
        return super().errors(inputs) + [
            f"prepare.model.trusted: {name} is not a type of scikit-learn, LightGBM or XGBoost; name a model with code"
            " of your own as function: my_module:predict"
            for name in self.trusted
            if not name.startswith(TRUSTED)
        ]

    def opened(self, folder: Path) -> tuple[Ask, Sequence[Any]]:
        import skops.io

        path = folder / Path(self.skops).name
        if missing := [name for name in untrusted(path) if name not in self.trusted]:
            raise UsageError(
                f"prepare.model.skops: {self.skops} has types that skops does not trust by itself; if you do, add"
                f" trusted: [{', '.join(missing)}]"
            )
        try:
            model = skops.io.load(path, trusted=self.trusted)
        except Exception as error:  # a damaged file, or one of another version of scikit-learn
            raise UsageError(f"prepare.model.skops: {self.skops} cannot be read: {_line(error)}") from None
        ask = getattr(model, "predict_proba", None) or getattr(model, "predict", None)
        if ask is None or not hasattr(model, "classes_"):
            raise UsageError(f"prepare.model.skops: {self.skops} is {type(model).__name__}, expected a classifier")
        columns = getattr(model, "feature_names_in_", None)

        def answer(rows: pd.DataFrame) -> Any:
            return ask(rows if columns is None else _columns(rows, columns.tolist()))

        return answer, model.classes_.tolist()


class OnnxFile(OwnModelSource):
    """`onnx: model.onnx`: run by ONNX Runtime, with one input for all columns or one for each."""

    key = "onnx"
    onnx: str = Field(pattern=r"\.onnx$")
    output: str | None = Field(None, description="name of the output with labels or probabilities")

    def opened(self, folder: Path) -> tuple[Ask, Sequence[Any]]:
        session = _session(folder / Path(self.onnx).name, self.onnx)
        inputs, outputs = session.get_inputs(), {one.name: one for one in session.get_outputs()}
        if self.output is not None and self.output not in outputs:
            hint = did_you_mean(self.output, outputs)
            raise UsageError(
                f"prepare.model.output: {self.onnx} has no {self.output!r}{hint}; found {', '.join(outputs)}"
            )
        shares = [name for name, one in outputs.items() if one.type in ("tensor(float)", "tensor(double)")]
        output = self.output or (shares or list(outputs))[0]
        if outputs[output].type.startswith("seq"):
            raise UsageError(
                f"prepare.model.onnx: output {output} of {self.onnx} is a list of maps, expected probabilities (n,"
                " classes); of skl2onnx that is the option zipmap: False"
            )

        def answer(rows: pd.DataFrame) -> Any:
            if len(inputs) == 1 and inputs[0].name not in rows:
                fed = {inputs[0].name: rows.to_numpy(dtype=_NUMBERS.get(inputs[0].type, object))}
            else:
                taken = _columns(rows, [one.name for one in inputs])
                fed = {one.name: _fed(taken[one.name], one.type) for one in inputs}
            return session.run([output], fed)[0]

        return answer, self.classes


class OwnFunction(OwnModelSource):
    """`function: my_module:predict`: a function of a DataFrame in a module beside params.yaml."""

    key = "function"
    function: str = Field(pattern=f"^{FUNCTION}$", description="my_module:predict")

    def errors(self, inputs: Path) -> list[str]:
        error = own_module_error(self.function, "prepare.model.function")
        return [error] if error else []

    def opened(self, folder: Path) -> tuple[Ask, Sequence[Any]]:
        return own_function(self.function, "prepare.model.function"), self.classes

    def origin(self, inputs: Path) -> str:
        return self.function


OWN_MODELS: Mapping[str, type[OwnModelSource]] = {"skops": SkopsFile, "onnx": OnnxFile, "function": OwnFunction}


@dataclass
class OwnModel:
    """A model that is asked as it is.

    Args:
        name: for people.
        ordered: whether the classes are in the order of its probabilities.
        shares: whether it answers with probabilities, not labels.
    """

    name: str
    own_classes: Sequence[str]
    ask: Ask
    ordered: bool
    shares: bool = True
    gaps: ClassVar[bool] = True

    @property
    def classes(self) -> list[str]:
        """Names of its classes, then `NO_ANSWER`, in the order of `log_odds`."""
        return [*self.own_classes, NO_ANSWER]

    def log_odds(self, rows: pd.DataFrame) -> np.ndarray:
        """Return log probabilities of n rows (n, classes), see `RowModel`; a label has the probability 1."""
        return np.log(np.clip(self._answers(rows)[0], 1e-12, 1)).round(9)

    def tried(self, rows: pd.DataFrame) -> np.ndarray:
        """Ask for n unchanged rows, and return the probabilities (n, classes) with `NO_ANSWER` at the end.

        Raises a UsageError if an answer is not valid, or another one when it is asked again.
        """
        shares, answers = self._answers(rows)
        if (wrong := np.flatnonzero(shares[:, -1])).size:
            wanted = "probabilities from 0 to 1 that add up to 1" if self.shares else f"one of {_few(self.own_classes)}"
            raise UsageError(
                f"prepare.model: {self.name} has no valid answer to {len(wrong):,} of {len(rows):,} unchanged rows,"
                f" expected {wanted}; found {_few(np.atleast_1d(answers[wrong[0]]).tolist())!r} for a row with"
                f" {_few([f'{column} {value}' for column, value in rows.iloc[wrong[0]].items()])}"
            )
        self.require_same(rows, shares[:_KNOWN])
        return shares

    def require_same(self, rows: pd.DataFrame, known: np.ndarray) -> None:
        """Raise an error if it does not answer to the first rows as it did.

        Raises a UsageError with the first row that is answered otherwise.
        """
        found = self._answers(rows.iloc[: len(known)])[0]
        if found.shape != known.shape:
            raise UsageError(f"{self.name} has {found.shape[1] - 1} classes, and had {known.shape[1] - 1}")
        if (other := np.flatnonzero(np.abs(found - known).max(1) > _TOLERANCE)).size:
            row, column = other[0], np.abs(found - known)[other[0]].argmax()
            raise UsageError(
                f"{self.name} answers otherwise when it is asked again: {self.classes[column]} had"
                f" {known[row, column]:.4g} in row {row}, now {found[row, column]:.4g}. An audit needs a model that"
                " gives one answer to a row, whatever else is asked and when"
            )

    def _answers(self, rows: pd.DataFrame) -> tuple[np.ndarray, np.ndarray]:
        """Return probabilities (n, classes) with `NO_ANSWER` at the end, and the answers as they are."""
        try:
            answers = np.asarray(self.ask(rows.copy()))
        except UsageError:
            raise
        except Exception as error:  # a user's model may fail in any way
            types = _few([f"{name} ({dtype})" for name, dtype in rows.dtypes.items()])
            gaps = "; some values are missing: if the model accepts none, take `missing` out of concepts"
            raise UsageError(
                f"prepare.model: {self.name} was given {len(rows):,} rows with {types} and ended with {_line(error)}"
                f"{gaps if rows.isna().any(axis=None) else ''}"
            ) from None
        n, k = len(rows), len(self.own_classes)
        if answers.shape == (n,):
            self.shares = False
            order = {name: i for i, name in enumerate(self.own_classes)}
            return np.eye(k + 1)[[order.get(spelled(answer), k) for answer in answers]], answers
        if answers.shape != (n, k) or answers.dtype.kind not in "fiu":
            raise UsageError(
                f"prepare.model: {self.name} was given {n:,} rows and answered with shape {answers.shape} of"
                f" {answers.dtype}, expected labels ({n},) or probabilities ({n}, {k}), one for each of the classes"
                f" {_few(self.own_classes)}; if it has other classes, name them in prepare.model.classes"
            )
        if not self.ordered:
            raise UsageError(
                f"prepare.model: {self.name} answers with probabilities; name its {k} classes in their order, classes:"
                f" [{', '.join(self.own_classes)}] or another one (faded init: --classes {','.join(self.own_classes)})"
            )
        self.shares = True
        with np.errstate(invalid="ignore"):
            valid = (np.abs(answers.sum(1) - 1) < 1e-3) & (answers >= 0).all(1)
        return np.column_stack([np.where(valid[:, None], answers, 0), ~valid]).astype(float), answers


def read_own_model(folder: Path, rows: pd.DataFrame) -> OwnModel:
    """Read what `OwnModelSource.made` wrote.

    Raises a UsageError if it answers otherwise than it did.

    Args:
        rows: the audit's unchanged rows.
    """
    about = read_json(folder / "model.json")
    block = about["model"]
    source = OWN_MODELS[next(key for key in OWN_MODELS if key in block)].model_validate(block)
    ask, named = source.opened(folder)
    model = OwnModel(source.named, about["classes"], ask, ordered=bool(named), shares=about["shares"])
    model.require_same(rows, np.array(about["known"]))
    return model


def untrusted(path: Path) -> list[str]:
    """Return the types in a skops file that skops does not trust by itself; none of it is run.

    Raises a UsageError if it is not a skops file, or has types that nobody may trust.
    """
    try:
        import skops.io
    except ImportError:
        raise UsageError(f"{path.name}: reading it needs skops: pip install 'faded[tables]'") from None
    try:
        found: list[str] = skops.io.get_untrusted_types(file=path)
    except Exception as error:  # a damaged file
        raise UsageError(f"{path.name} is not a file that skops can read: {_line(error)}") from None
    if strange := [name for name in found if not name.startswith(TRUSTED)]:
        raise UsageError(
            f"{path.name} has {', '.join(strange)}, not of scikit-learn, LightGBM or XGBoost: name a model with code of"
            " your own as my_module:predict"
        )
    return found


def _require_order(answers: np.ndarray, labels: np.ndarray, classes: Sequence[str]) -> None:
    """Refuse an order of classes in which the model is no better than guessing, if it clearly is in another one.

    Raises a UsageError with the likely order.

    Args:
        answers: (n,) indices of classes.
        labels: (n,) what was expected.
        classes: their names in the order that was given.
    """
    counts = np.array([np.bincount(answers[labels == name], minlength=len(classes)) for name in classes])
    order = ClassOrder(classes, counts)
    now, then = order.named_rate, order.proposed_rate
    if now.value <= 1 / len(classes) and then.low > now.high:
        raise UsageError(
            f"prepare.model.classes: in this order {now.value:.0%} of {len(labels):,} unchanged rows are right, in the"
            f" most likely one {then.value:.0%} would be: classes: [{', '.join(order.proposed)}]"
        )


def _columns(rows: pd.DataFrame, names: Sequence[str]) -> pd.DataFrame:
    if missing := [name for name in names if name not in rows]:
        raise UsageError(
            f"prepare.model: the model takes the column(s) {', '.join(missing)}, which the data do not have; found"
            f" {', '.join(rows)}"
        )
    return rows[list(names)]


def _fed(column: pd.Series, kind: str) -> np.ndarray:
    """Return a column as an input of an ONNX file, (n, 1); a missing text is ""."""
    if kind == "tensor(string)":
        texts = column.astype(object).where(column.notna(), "").astype(str)
        return texts.to_numpy(dtype=object)[:, None]
    if column_kind(column) == "date":
        raise UsageError(f"prepare.model: ONNX has no dates: leave {column.name} out of prepare.data.dates")
    return column.to_numpy(dtype=_NUMBERS[kind])[:, None]


def _session(path: Path, name: str) -> Any:
    try:
        import onnxruntime
    except ImportError:
        raise UsageError("prepare.model.onnx: ONNX Runtime is not installed: pip install 'faded[tables]'") from None
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = options.inter_op_num_threads = 1
    options.use_deterministic_compute = True
    options.log_severity_level = 3
    try:
        return onnxruntime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
    except Exception as error:  # exception classes of ONNX Runtime, which depend on its version
        raise UsageError(f"prepare.model.onnx: {name} cannot be read by ONNX Runtime: {_line(error)}") from None


def _few(values: Sequence[Any]) -> str:
    return ", ".join(f"{v:.4g}" if isinstance(v, float) else str(v) for v in values[:10]) + (
        ", ..." * (len(values) > 10)
    )


def _line(error: Exception) -> str:
    return f"{type(error).__name__}: {' '.join(str(error).split())[:_SHOWN]}"
