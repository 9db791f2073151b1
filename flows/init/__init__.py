"""`faded init`: from a model, data and a few answers to a calibrated audit in params.yaml."""
