"""Screening before an audit: how often a model fails with each concept alone, and whether a concept has an effect.

See docs/choosing-concepts.md.
"""
