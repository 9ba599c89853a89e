"""Copies of a root in object stores."""
