"""The Prefect flows that run the DVC graph, and the `faded` command."""
