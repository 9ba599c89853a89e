"""Optimizers, and the partitions of gradients that they see."""
