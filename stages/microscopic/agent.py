"""An agent that learns to walk to the nearest failure: PPO with masked actions on the small-step environment.

It is trained on other items than those it walks, if there are any. Its advantage is few queries: it probes only its own
steps, while a search probes every neighbour. Its training takes thousands of probes.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from sb3_contrib import MaskablePPO

from stages.core.errors import NoLearningError
from stages.explorers.env import StopWhenSpent
from stages.microscopic.env import StepReward, StepsVecEnv, Trail
from stages.microscopic.settings import WalkerSettings
from stages.microscopic.walks import WalkState

PATIENCE = 4  # steps per unique probe of the training, after which the agent only repeats itself


def train_and_walk(walks: WalkState, settings: WalkerSettings, seed: int) -> dict[str, Any]:
    """Train on the prober's items that do not walk (on all, if there are no others), then walk.

    Returns:
        Numbers of the training, for the metrics.

    Raises:
        NoLearningError: if the budget was too small for a single update, or all training items fail at the start.
    """
    prober, moves = walks.prober, walks.moves
    trail = Trail(prober, moves, StepReward(settings.bonus, settings.cost))
    walking = len(walks.radius)
    learning = np.arange(walking, len(prober.item_ids)) if len(prober.item_ids) > walking else np.arange(walking)
    before = prober.spent
    spend = int(settings.training * prober.left)
    too_little = NoLearningError(
        f"microscopic exploration by rl made no gradient update within {spend} probes: raise"
        " discover.microscopic.budget, or lower n_envs or n_steps in its settings; method beam needs no training"
    )
    # Every item costs a probe at its start: use few enough to leave most of the training for steps.
    most = max(settings.n_envs, spend // 10)
    if len(learning) > most:
        learning = np.sort(np.random.default_rng(seed).choice(learning, most, replace=False))
    _, failed, answered = trail.margins(learning, np.tile(moves.start, (len(learning), 1)))
    if not answered.any():
        raise too_little
    if failed[answered].all():
        raise NoLearningError("microscopic exploration by rl: all items it could learn from fail unchanged")
    env = StepsVecEnv(trail, learning[answered & ~failed], settings.n_envs, walks.limit, seed)
    model = MaskablePPO(
        "MlpPolicy",
        env,
        n_steps=settings.n_steps,
        batch_size=min(settings.batch_size, settings.n_steps * settings.n_envs),
        n_epochs=settings.n_epochs,
        learning_rate=settings.learning_rate,
        gamma=settings.gamma,
        ent_coef=settings.ent_coef,
        policy_kwargs={"net_arch": list(settings.hidden), "optimizer_kwargs": {"fused": True, "eps": 1e-5}},
        seed=seed,
        device="cpu",
    )
    model.learn(total_timesteps=PATIENCE * spend, callback=StopWhenSpent(prober, before + spend))
    if model._n_updates == 0:
        raise too_little
    details = {"gradient_updates": int(model._n_updates), "training_probes": prober.spent - before}
    for walk in range(settings.walks):
        _walk(walks, trail, model, deterministic=walk == 0)
    return details


def _walk(walks: WalkState, trail: Trail, model: MaskablePPO, *, deterministic: bool) -> None:
    """Let the agent walk all items at once, each until it fails or cannot find a nearer failure."""
    items = np.flatnonzero(walks.radius > 1)
    cells = np.tile(walks.moves.start, (len(items), 1))
    margins, _, _ = trail.margins(items, cells)
    for depth in range(1, walks.limit + 1):
        going = walks.moves.valid(cells).any(axis=1) & (walks.radius[items] > depth)
        items, cells, margins = items[going], cells[going], margins[going]
        if not len(items):
            return
        observations = trail.observe(items, cells, margins)
        actions, _ = model.predict(observations, action_masks=walks.moves.valid(cells), deterministic=deterministic)
        cells = walks.moves.take(cells, actions)
        answers = walks.ask(items, cells)
        walks.searched[items[answers.answered]] = np.maximum(walks.searched[items[answers.answered]], depth)
        items, cells = items[answers.answered], cells[answers.answered]
        margins = trail.clipped(answers.discrepancy[answers.answered])
