"""What probes say about a model: the landscape of failure rates, its modes, and how it moves after a repair."""
