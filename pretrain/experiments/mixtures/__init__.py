"""Weights of the sources, chosen by small trainings."""
