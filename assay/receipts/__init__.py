"""Receipts of a run: names of its corpus, and answers to requests."""
