"""The study of explorers, on landscapes whose truth is known."""
