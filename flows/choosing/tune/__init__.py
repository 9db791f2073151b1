"""`faded tune`: find the fastest backend, dtype and batch size here, on the audit's own model and items."""
