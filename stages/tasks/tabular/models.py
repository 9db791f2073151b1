"""Models that Faded fits itself: scikit-learn estimators, stored as the rows they were fitted on.

Estimators are usually pickled, and a pickle can run code. Here a model is stored as the estimator's name and settings
with its rows. Reading it fits it again, and stored answers show whether the result is the same model.
"""

import json
import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, ClassVar, Self

import numpy as np
import pandas as pd
from pydantic import Field
from sklearn import __version__
from sklearn.compose import make_column_transformer
from sklearn.ensemble import HistGradientBoostingClassifier, RandomForestClassifier
from sklearn.linear_model import LogisticRegression
from sklearn.neural_network import MLPClassifier
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import OneHotEncoder, StandardScaler

from stages.core.errors import UsageError, did_you_mean
from stages.core.files import read_json, read_table, write_json
from stages.tasks.sources import Source
from stages.tasks.tabular.data import Table
from stages.tasks.tabular.own import OWN_MODELS

ESTIMATORS: Mapping[str, Any] = {
    "hist_gradient_boosting": HistGradientBoostingClassifier,
    "logistic_regression": LogisticRegression,
    "mlp": MLPClassifier,
    "random_forest": RandomForestClassifier,
}
_DEFAULTS: Mapping[str, Mapping[str, Any]] = {"logistic_regression": {"max_iter": 1000}, "mlp": {"max_iter": 500}}
_KNOWN = 20  # number of rows whose answers are stored
_TOLERANCE = 1e-6
LABEL = "faded label"  # column of the rows a model was fitted on


class Estimator(Source):
    """`estimator: hist_gradient_boosting`: fitted on rows that are in no split of the audit."""

    estimator: str
    rows: int = Field(ge=10, le=10_000_000, description="rows it is fitted on")
    settings: dict[str, Any] = Field(default_factory=dict, description="of the estimator, see scikit-learn")

    def errors(self, inputs: Path) -> list[str]:
        if self.estimator not in ESTIMATORS:
            hint = did_you_mean(self.estimator, ESTIMATORS)
            return [f"prepare.model.estimator: no {self.estimator!r}{hint}; expected one of {', '.join(ESTIMATORS)}"]
        known = ESTIMATORS[self.estimator]().get_params()
        return [
            f"prepare.model.settings.{name}: not of {self.estimator}{did_you_mean(name, known)}"
            for name in self.settings
            if name not in known
        ]

    def lacks(self, labels: Sequence[str], classes: Sequence[str]) -> str:
        """Return what to say if the items have labels that are not classes of the model."""
        return f"prepare.model.rows: {self.rows} rows hold no {', '.join(labels)}; take more"

    def origin(self, inputs: Path) -> str:
        return f"{self.estimator}, fitted on {self.rows} rows"

    def made(
        self, inputs: Path, seed: int, table: Table, fitted_on: np.ndarray, used: np.ndarray, folder: Path
    ) -> "RowModel":
        """Fit the estimator on some rows of a table, and write it to a folder.

        Raises a UsageError if it cannot be fitted.
        """
        rows = table.rows.iloc[fitted_on].reset_index(drop=True)
        labels = table.labels[fitted_on]
        model = RowModel.fit(self.estimator, self.settings, seed, rows, labels, table.protected)
        model.save(folder)
        return model


MODEL_LOADERS: Mapping[str, type[Source]] = {"estimator": Estimator, **OWN_MODELS}


def arguments(estimator: str, settings: Mapping[str, Any], seed: int) -> dict[str, Any]:
    """Return all arguments of an estimator."""
    return {**_DEFAULTS.get(estimator, {}), **settings, "random_state": seed}


@dataclass(frozen=True)
class RowModel:
    """An estimator with the rows it was fitted on.

    Args:
        rows: (n, d) features.
        labels: (n,) their labels.
        fitted: the fitted scikit-learn pipeline.
        protected: columns that it was not fitted on.
        shifts: what is added to the log probability of each class, by protected column and group: thresholds by group.
        before: the model that it is a repair of, fitted on the first of the same rows, if it goes only part of the way.
        share: of the way from the log probabilities of `before` to its own.
    """

    estimator: str
    settings: Mapping[str, Any]
    seed: int
    rows: pd.DataFrame
    labels: np.ndarray
    fitted: Any
    protected: Sequence[str] = ()
    shifts: Mapping[str, Mapping[str, Sequence[float]]] = field(default_factory=dict)
    before: Self | None = None
    share: float = 1.0
    shares: ClassVar[bool] = True
    gaps: ClassVar[bool] = False

    @classmethod
    def fit(
        cls,
        estimator: str,
        settings: Mapping[str, Any],
        seed: int,
        rows: pd.DataFrame,
        labels: np.ndarray,
        protected: Sequence[str] = (),
    ) -> Self:
        """Fit an estimator to standardised numbers and one-hot encoded categories."""
        learnt = rows.drop(columns=list(protected))
        features = make_column_transformer(
            (StandardScaler(), list(learnt.select_dtypes("float"))),
            (OneHotEncoder(handle_unknown="ignore", sparse_output=False), list(learnt.select_dtypes(exclude="float"))),
        )
        own = arguments(estimator, settings, seed)
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")  # such as that more iterations might help
                fitted = make_pipeline(features, ESTIMATORS[estimator](**own)).fit(rows, labels)
        except (ValueError, TypeError) as error:
            raise UsageError(f"prepare.model: {estimator} cannot be fitted: {error}") from None
        return cls(estimator, settings, seed, rows, labels, fitted, protected)

    @property
    def classes(self) -> list[str]:
        """Names of its classes, in the order of its answers."""
        return [str(name) for name in self.fitted.classes_]

    def log_odds(self, rows: pd.DataFrame) -> np.ndarray:
        """Return log probabilities of n rows: (n, classes), rounded so that they do not depend on the batch."""
        found = np.log(np.clip(self.fitted.predict_proba(rows), 1e-12, 1))
        for column, groups in self.shifts.items():
            for group, by_class in groups.items():
                found[(rows[column] == group).to_numpy()] += by_class
        if self.before is not None:
            start = self.before.log_odds(rows)
            found = start + self.share * (found - start)
        if self.shifts or self.before is not None:
            found -= np.logaddexp.reduce(found, axis=1, keepdims=True)
        return found.round(9)

    def refit(self, rows: pd.DataFrame, labels: np.ndarray) -> "RowModel":
        """Fit the same estimator on its own rows and more."""
        more = pd.concat([self.rows, rows], ignore_index=True)
        labels = np.concatenate([self.labels, labels])
        return RowModel.fit(self.estimator, self.settings, self.seed, more, labels, self.protected)

    def towards(self, repaired: Self, share: float) -> Self:
        """Return the model that is this share of the way to a repair of it, in thresholds or log probabilities."""
        if share in (0, 1):
            return repaired if share else self
        if not repaired.shifts:
            return replace(repaired, before=self, share=share)
        shifts = {
            column: {group: [share * shift for shift in by_class] for group, by_class in groups.items()}
            for column, groups in repaired.shifts.items()
        }
        return replace(repaired, shifts=shifts)

    def loading(self) -> dict[str, Any]:
        """Return the values for templates/load.py.j2, which fits it as `fit` does."""
        made = ESTIMATORS[self.estimator]
        return {
            "library": ".".join(made.__module__.split(".")[:2]),  # sklearn.ensemble
            "estimator": made.__name__,
            "settings": arguments(self.estimator, self.settings, self.seed),
            "label": LABEL,
            "protected": list(self.protected),
            "shifts": self.shifts,
            "before": 0 if self.before is None else len(self.before.rows),
            "share": self.share,
            "version": __version__,
        }

    def save(self, folder: Path) -> None:
        """Write it as rows.parquet and model.json."""
        folder.mkdir(parents=True, exist_ok=True)
        self.rows.assign(**{LABEL: self.labels}).to_parquet(folder / "rows.parquet", compression="zstd", index=False)
        about = {
            "estimator": self.estimator,
            "settings": json.loads(json.dumps(dict(self.settings))),
            "seed": self.seed,
            **({"protected": list(self.protected)} if self.protected else {}),
            **({"shifts": self.shifts} if self.shifts else {}),
            **({"before": len(self.before.rows), "share": self.share} if self.before is not None else {}),
            "scikit-learn": __version__,
            "known": self.log_odds(self.rows[:_KNOWN]).tolist(),
        }
        write_json(folder / "model.json", about)

    @classmethod
    def read(cls, folder: Path) -> "RowModel":
        """Read what `save` wrote, and fit it again.

        Raises a UsageError if that gives another model, as other versions of scikit-learn may.
        """
        about, rows = read_json(folder / "model.json"), read_table(folder / "rows.parquet")
        labels = rows.pop(LABEL).to_numpy()

        def fitted(n: int) -> "RowModel":
            own = (about["estimator"], about["settings"], about["seed"])
            return cls.fit(*own, rows[:n], labels[:n], about.get("protected", ()))

        model = replace(fitted(len(rows)), shifts=about.get("shifts", {}))
        if "before" in about:
            model = replace(model, before=fitted(about["before"]), share=about["share"])
        known = np.array(about["known"])
        found = model.log_odds(rows[:_KNOWN])
        if found.shape != known.shape or not np.allclose(found, known, atol=_TOLERANCE):
            raise UsageError(
                f"{folder}: fitted again, this {model.estimator} answers otherwise than when it was written, with"
                f" scikit-learn {about['scikit-learn']}; found {__version__}: install that one, or prepare it anew"
            )
        return model
