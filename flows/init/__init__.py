"""`faded init`: an audit of one's own, from a model, data and a few answers to a calibrated block in params.yaml."""
