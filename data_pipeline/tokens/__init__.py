"""Tokens: tokenizer, encoding, packing, mixing, token shards."""
