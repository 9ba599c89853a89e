"""Measurements of checks, gates, energy and reports."""
