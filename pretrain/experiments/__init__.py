"""Experiments on architectures: the Transformer's claims, tested on the run's own tokens."""
