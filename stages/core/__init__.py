"""What stages build on and that knows nothing of models: errors, files, processes, ledgers, intervals."""
