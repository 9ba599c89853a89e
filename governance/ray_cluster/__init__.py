"""Shards of a stage as tasks of a Ray cluster."""
