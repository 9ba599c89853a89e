"""Forms and extractors of HTML pages.

Nothing is imported here, as in `readers`.
"""
