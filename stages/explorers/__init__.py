"""Explorers choose the next probes: deep RL agents and the baselines they have to beat at the same budget."""

from stages.explorers.contract import Explorer, Found
from stages.explorers.env import ENV_ID, ConceptEnv, ConceptVecEnv
from stages.explorers.policies import load_policy
from stages.explorers.policy import Policy, save_policy
from stages.explorers.prober import Answers, Prober
from stages.explorers.registry import EXPLORERS, make_explorer
from stages.explorers.search import SearchResult, search

__all__ = [
    "ENV_ID",
    "EXPLORERS",
    "Answers",
    "ConceptEnv",
    "ConceptVecEnv",
    "Explorer",
    "Found",
    "Policy",
    "Prober",
    "SearchResult",
    "load_policy",
    "make_explorer",
    "save_policy",
    "search",
]
