"""Decontamination: passages of evaluation sets in the corpus."""
