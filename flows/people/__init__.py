"""The point at which a person decides: asking, waiting, reviewing, signing, rating."""
