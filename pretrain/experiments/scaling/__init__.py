"""Scaling laws, fitted to a ladder of small trainings."""
