"""Receipts: proofs that a document is, or is not, in a corpus."""
