"""Numba kernels: compilation, caching, Arrow buffers, mentions."""
