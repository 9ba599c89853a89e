"""Settings of training, model and optimizer; no torch."""
