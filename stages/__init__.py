"""The stages of an audit: one module per DVC stage, each run as `python -m stages.NAME AUDIT`."""
