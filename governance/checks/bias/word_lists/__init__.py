"""Word lists: identity terms, attributes and lexicons, by language."""
