"""Transformers whose attention never crosses a document's boundary."""
