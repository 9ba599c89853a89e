"""Batches: token shards, their mixture, the order of samples, and the loader."""
