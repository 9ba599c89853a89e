"""Metrics: the log, its mirrors, and peak FLOPS."""
