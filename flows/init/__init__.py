"""`faded init`: from a model, data and a few answers to an audit in params.yaml."""
