"""Training from weights of a Hugging Face folder."""
