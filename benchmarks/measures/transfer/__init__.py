"""Measurements beyond pretraining: transfer, claims, statistics."""
