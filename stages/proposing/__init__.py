"""Proposing: a language model names concepts that nobody listed, made of what the project can do already.

What it says is data: it is validated as what people write in params.yaml is, and nothing of it is executed. A short
screening decides what enters. See docs/proposing.md. Importing its records does not import what asks or measures.
"""

from stages.proposing.record import Outcome, Proposal

__all__ = ["Outcome", "Proposal"]
