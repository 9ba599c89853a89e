"""Generation of text by a trained model, and its memorisation of texts."""
