"""When, where and who: Prefect flows over the DVC graph, and the `faded` command."""
