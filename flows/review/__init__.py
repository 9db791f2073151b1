"""Where people look at a landscape and decide: in the terminal, and on a page."""
