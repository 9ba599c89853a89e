"""Corpora, sets and lists of others, in the folder that ASSAY_TEST_DATA names."""

import gzip
import json
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest


def given_data(name: str) -> Path:
    """A file or folder there; without it the test is skipped."""
    if not (folder := os.environ.get("ASSAY_TEST_DATA")):
        pytest.skip("ASSAY_TEST_DATA is not set")
    return Path(folder) / name


def given_rows(name: str) -> Iterator[dict[str, Any]]:
    """The rows of `name`.jsonl.gz there."""
    with gzip.open(given_data(f"{name}.jsonl.gz"), "rt", encoding="utf-8") as lines:
        yield from map(json.loads, lines)
