"""Takedown by replay: the plan, and the training again without the documents."""
