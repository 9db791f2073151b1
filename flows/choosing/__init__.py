"""What helps to choose an audit's settings: concepts, usage, explorer, compute."""
