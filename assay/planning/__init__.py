"""Plan of a run on a named cluster, before it is queued."""
