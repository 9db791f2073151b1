"""The review of a landscape by people: in the terminal, and on a page."""
