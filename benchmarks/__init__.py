"""Measurements quoted in the README and the docs."""
