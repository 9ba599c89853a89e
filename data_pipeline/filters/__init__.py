"""Filters: quality rules, language identification, blocklists, classifiers."""
