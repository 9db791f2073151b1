"""Explorers choose the next probes: deep RL agents and the baselines they have to beat at the same budget."""
