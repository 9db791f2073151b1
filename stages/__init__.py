"""What an audit does: one module per DVC stage, each run as `python -m stages.NAME AUDIT`."""
