"""Sections of the page: facts in words, tables and pictures."""
