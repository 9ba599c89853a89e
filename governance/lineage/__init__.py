"""Lineage: ancestors of an artifact, attestations, verification."""
