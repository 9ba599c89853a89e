"""From raw text to packed token shards; each stage is a function from manifests to a manifest.

Imports the ground of `governance` only, and never `pretrain`: the two meet on disk.
"""
