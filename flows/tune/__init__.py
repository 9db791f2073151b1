"""`faded tune`: which backend, dtype and batch size are fastest here, measured on the audit's own model and items."""
