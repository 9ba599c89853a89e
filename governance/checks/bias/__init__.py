"""Bias metrics, one file a family, as sums of integers."""
