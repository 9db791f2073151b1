"""Microscopic exploration: the smallest changes, step by step, that make the model fail."""
