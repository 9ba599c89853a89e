"""Older entry point: the same as `python -m assay`."""

from assay.cli.main import program

raise SystemExit(program())
