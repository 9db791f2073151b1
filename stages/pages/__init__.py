"""Reports: self-contained pages on a landscape, and on a model before and after a repair."""
