"""Replay of a training without some documents: cost and signed statement."""
