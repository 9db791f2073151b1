"""Evidence an outsider can check: an audit's inputs, decisions and results, bound by hashes.

A bundle is one zip file. It contains the small files and the SHA-256 of the large ones, so it can be kept beside a
model for years. `verify_bundle` needs only the bundle.
"""
