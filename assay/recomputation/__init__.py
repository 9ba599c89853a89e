"""Audit of a training: stretches of its steps, repeated and compared."""
