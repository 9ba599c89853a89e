"""Preflight: what refuses or warns about a start of training, memory included."""
