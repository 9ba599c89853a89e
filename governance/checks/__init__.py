"""Checks of a corpus: suites of expectations, and bias metrics."""
