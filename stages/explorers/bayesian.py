"""Bayesian optimisation by Optuna, which searches for the largest margin as in hyperparameter tuning."""

from __future__ import annotations

from typing import Any, Literal

import numpy as np
from pydantic import Field, model_validator

from stages.core.errors import UsageError
from stages.explorers.ask_tell import AskTell, NextProbes, Strategy, embedding_order
from stages.explorers.prober import Prober
from stages.params import Strict


class BayesianSettings(Strict):
    """Settings of the Bayesian optimisation."""

    sampler: Literal["tpe", "gp"] = Field(
        "tpe", description="Parzen estimators, or a Gaussian process (a hundred times slower)"
    )
    batch: int = Field(
        16, ge=1, le=1_000_000, description="probes asked at once; those under way count as poor (constant liar)"
    )
    startup: int = Field(100, ge=1, le=1_000_000, description="probes drawn evenly first")
    max_history: int = Field(
        200, ge=10, le=1_000_000, description="probes it never forgets; from twice as many the oldest are dropped"
    )

    @model_validator(mode="after")
    def _remembers_its_startup(self) -> BayesianSettings:
        if self.startup > self.max_history:  # otherwise it would forget below its start-up, and only draw at random
            raise ValueError(f"startup must be at most max_history, found {self.startup} > {self.max_history}")
        return self


class Bayesian(AskTell[BayesianSettings]):
    """Tree-structured Parzen estimators (Bergstra et al. 2011; multivariate as Falkner et al. 2018) or GP, by Optuna.

    The item is one more integer, in the order of the embeddings' first principal component; ordered concepts are
    integers too, and others are categories. It searches for the largest margin, not for many failures in many places.
    Its own cost grows with the probes it learns from (about 10 ms per probe with a few hundred), so it learns from the
    latest `max_history` to twice as many; on enumerated MNIST, forgetting also made it find more.
    """

    name, Settings = "bayesian", BayesianSettings

    def start(self, prober: Prober, rng: np.random.Generator) -> Strategy:
        return _Study(prober, self.settings, int(rng.integers(2**31)))


class _Study:
    """A series of Optuna studies, each started with the latest probes of the one before.

    Its parameters are the columns of a probe: "0" is the position of the item, "1" and so on are the concepts.
    """

    def __init__(self, prober: Prober, settings: BayesianSettings, seed: int) -> None:
        self._optuna = _import_optuna()
        self._settings = settings
        self._order = embedding_order(prober)
        self._place = np.argsort(self._order)
        kinds = self._optuna.distributions
        self._distributions = {"0": kinds.IntDistribution(0, len(self._order) - 1)}
        for j, concept in enumerate(prober.space.concepts, start=1):
            self._distributions[str(j)] = (
                kinds.IntDistribution(0, len(concept) - 1)
                if concept.ordered
                else kinds.CategoricalDistribution(range(len(concept)))
            )
        samplers = self._optuna.samplers
        self._sampler = (
            samplers.TPESampler(n_startup_trials=settings.startup, multivariate=True, constant_liar=True, seed=seed)
            if settings.sampler == "tpe"
            else samplers.GPSampler(n_startup_trials=settings.startup, seed=seed)
        )
        self._study = self._new_study([])
        self._pending: list[Any] = []  # Optuna's trials, in the order of the batch proposed

    def _new_study(self, trials: list[Any]) -> Any:
        study = self._optuna.create_study(direction="maximize", sampler=self._sampler)
        study.add_trials(trials)
        return study

    def propose(self) -> NextProbes:
        complete = self._study.get_trials(deepcopy=False, states=[self._optuna.trial.TrialState.COMPLETE])
        self._pending = [self._study.ask(self._distributions) for _ in range(self._settings.batch)]
        columns = np.array([[trial.params[name] for name in self._distributions] for trial in self._pending])
        uniform = len(complete) < self._settings.startup  # until then both samplers draw at random
        return NextProbes(self._order[columns[:, 0]], columns[:, 1:], uniform)

    def learn(self, items: np.ndarray, cells: np.ndarray, margin: np.ndarray, fresh: np.ndarray) -> None:
        pending, self._pending = self._pending, []
        if pending:
            for trial, value in zip(pending, margin.tolist(), strict=True):
                self._study.tell(trial, value)
        else:  # even fill-in draws
            columns = np.column_stack([self._place[items], cells]).tolist()
            for row, value in zip(columns, margin.tolist(), strict=True):
                params = dict(zip(self._distributions, row, strict=True))
                self._study.add_trial(
                    self._optuna.trial.create_trial(params=params, distributions=self._distributions, value=value)
                )
        trials = self._study.get_trials(deepcopy=False)
        if len(trials) >= 2 * self._settings.max_history:
            self._study = self._new_study(trials[-self._settings.max_history :])


def _import_optuna() -> Any:
    try:
        import optuna
        import optuna.trial
    except ImportError:
        raise UsageError("explorer bayesian needs Optuna: pip install 'faded[explorers]'") from None
    optuna.logging.set_verbosity(optuna.logging.WARNING)  # otherwise it reports every trial
    return optuna
