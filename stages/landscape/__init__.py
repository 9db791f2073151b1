"""Turn probes into the landscape of failure rates, its modes, and how they change after a repair."""
