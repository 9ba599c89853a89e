"""Code that the scripts of `benchmarks/` share, and their measurements by subject."""
