"""Pairs of texts as documents (`data.encode.loss_on = "targets"`).

    Save as
    ␞
    Speichern unter
    ^^^^^^^^^^^^^^^ and the end-of-document token are predicted

A document of a `parallel` source is its source, the mark on a line of its own, and its target; the reader refuses a
text that holds the mark. The mark's tokens end the source, and the last of them is the first that a decoder reads.
"""

from __future__ import annotations

import re

import pyarrow as pa

from data_pipeline.readers.file_types.pair_text import MARK, sides
from governance.errors import PipelineError

TARGET = re.compile(f"\n{MARK}\n(.*)".encode(), re.DOTALL)


def sources_of(table: pa.Table) -> pa.Array:
    """Source of each document.

    Raises:
        PipelineError: a document is not a pair, or a side of it is empty; names it.
    """
    found = [sides(text) for text in table["text"].to_pylist()]
    for identity, pair in zip(table["id"].to_pylist(), found, strict=True):
        if pair is None:
            raise PipelineError(
                f"encode: the document {identity} is not a pair of texts: data.encode.loss_on = 'targets' needs a "
                f"source, a line of {MARK!r} alone, and a target. Read it with a source of type 'parallel', and see "
                f"what a stage in between removed: assay data show CONFIG"
            )
    return pa.array([pair[0] for pair in found if pair], pa.large_string())
