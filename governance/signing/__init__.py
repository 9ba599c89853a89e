"""Signatures: keys, certificates, the journal and its anchors."""
