"""Bias metrics, one file per family, as sums of integers."""
