"""Index of a token corpus's texts, in which any passage is found."""
