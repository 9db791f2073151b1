"""Microscopic exploration: how little has to change, step by step, until the model fails."""
