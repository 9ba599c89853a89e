"""Metrics of bias, one file a family; each is an integer aggregate that adds up in any order."""
