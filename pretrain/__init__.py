"""The trainer: token shards in, an accounted-for Transformer out.

Reads `encode` manifests, never the data pipeline's code; the one arrow across is the token shard's reader.
"""
