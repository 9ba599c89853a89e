"""Experiments behind the gate: claims, scaling laws, weights of sources."""
