"""Checkpoints: formats, asynchronous saving, loading, retention."""
