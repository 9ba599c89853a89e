"""What the scripts of `benchmarks/` share, and their measures by subject."""
