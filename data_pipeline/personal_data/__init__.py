"""Personal data in text: what it looks like by its standards, how it is found, and what becomes of it."""
