"""Concepts: what people can change about an input, and the grid those changes span."""

from stages.concepts.space import Concept, ConceptSpace, Level, Region, RegionJson
