"""Tasks: what differs between a classifier, a summarizer and a text-to-image model."""
