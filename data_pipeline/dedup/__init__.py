"""Deduplication: exact, by address, near-duplicates, repeated paragraphs."""
