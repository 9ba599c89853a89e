"""The data pipeline: from raw text to packed token shards.

It imports the ground of `governance` only, and never `pretrain`: the two meet on disk.
"""
