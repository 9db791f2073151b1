"""Explorers, which choose the next probes: deep RL agents and baselines to compare them with at the same budget."""
