"""Reports: one page on a whole run, and the same numbers as JSON; they read what others recorded."""
