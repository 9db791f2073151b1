"""Proposing: a language model names concepts that nobody listed, built from changes that the project already has.

Its answer is data: it is validated like params.yaml written by hand, and none of it is executed. A short screening
decides which proposals enter. See docs/choosing-concepts.md.
"""
