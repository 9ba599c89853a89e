"""Evaluation: validation loss, log-likelihood tasks, and audits of the model's bias."""
