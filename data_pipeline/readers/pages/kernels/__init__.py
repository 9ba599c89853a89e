"""Kernels that choose the lines of a page's main text.

Nothing is imported here, as in `readers`.
"""
