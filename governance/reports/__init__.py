"""Reports: one page on a whole run, and its numbers as JSON."""
