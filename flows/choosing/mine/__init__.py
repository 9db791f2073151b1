"""`faded mine`: find words, attributes and small sets of them at which a model fails, though no concept names them."""
