"""The original Transformer: an encoder and a decoder of pairs."""
