"""Energy: meters, ledger, attribution, footprint."""
