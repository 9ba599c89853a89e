"""What deduplication stands on: the join of keys, groups of candidates, the decision, and what a URL names."""
