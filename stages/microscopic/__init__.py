"""Microscopic exploration: how little has to change, step by step, until the model fails."""

from stages.microscopic.moves import Moves
from stages.microscopic.search import Robustness, agent_settings, measure_robustness

__all__ = ["Moves", "Robustness", "agent_settings", "measure_robustness"]
