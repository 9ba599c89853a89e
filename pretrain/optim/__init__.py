"""Optimizers, the gradients' partitions that they see, and the loss-spike guard."""
