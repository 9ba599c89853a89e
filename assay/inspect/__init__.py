"""Inspection of files that Assay has never seen, without a configuration."""
