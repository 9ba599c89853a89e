"""Interpretability: attention, logit lens, activations, attribution and the importance of heads."""
