"""The trainer: from token shards to a Transformer.

It reads `encode` manifests, never the data pipeline's code; the one arrow across is the token shard's reader.
"""
