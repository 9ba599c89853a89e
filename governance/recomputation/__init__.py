"""Audits of a training: draws, odds and statements."""
