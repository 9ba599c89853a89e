"""Classifiers made elsewhere: fastText files and folders of `transformers`.

- `.bin` or `.ftz`: a supervised fastText model of any size and loss (language identification, quality, toxicity). The
  score is the sum of the library's probabilities of the labels in `positive`, minus that of those in `negative`.
- a folder: a sequence classifier as `transformers` saves it, with safetensors weights and a fast tokenizer; nothing is
  fetched, and no code of the folder runs. The score is the same difference, or the number itself where the model gives
  one (a regression, such as of educational value). It runs in batches of texts of like length, on a GPU where there is
  one; there the last digits of a score may differ from those of a CPU. Texts are cut to what the model takes.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from data_pipeline.transformers_models import load_classifier_of, require_safetensors
from governance.errors import ConfigError, MissingInput, hub_hint

Scorer = Callable[["pa.ChunkedArray | pa.Array"], npt.NDArray[np.float64]]
"""The score of each text of a column."""

FASTTEXT, TRANSFORMERS = "fasttext", "transformers"
_SUFFIXES = (".bin", ".ftz")
_BATCH = 32


def model_files(path: Path, name: str) -> tuple[str, list[Path]]:
    """The kind of a model and its files.

    Raises:
        MissingInput: the path, or a file that such a model needs, is missing.
        ConfigError: it is neither a fastText file nor a folder of `transformers`.
    """
    where = f"classifier {name}: model {path}"
    if path.is_file() and path.suffix in _SUFFIXES:
        return FASTTEXT, [path]
    if path.is_file():
        raise ConfigError(f"{where}: is neither a fastText model (.bin, .ftz) nor a folder of transformers.")
    if not path.is_dir():
        raise MissingInput(
            f"{where}: no such file or folder. Paths start at the folder of the run's file.{hub_hint(path)}"
        )
    files = sorted(
        file for file in path.iterdir() if file.is_file() and file.suffix in (".json", ".safetensors", ".txt", ".model")
    )
    names = {file.name for file in files}
    if "config.json" not in names:
        raise MissingInput(f"{where}: has no config.json. Give a folder that save_pretrained of transformers wrote.")
    require_safetensors(where, names)
    if not {"tokenizer.json", "tokenizer_config.json"} <= names:
        raise MissingInput(f"{where}: has no tokenizer.json and tokenizer_config.json. Save the tokenizer there too.")
    return TRANSFORMERS, files


def open_model(
    kind: str, path: Path, name: str, positive: Sequence[str], negative: Sequence[str]
) -> tuple[Scorer, list[str]]:
    """The scorer of a model, and all its labels.

    Raises:
        ConfigError: a named label is not the model's, or it has several and no positive one is named.
        ManifestError: the file is not such a model.
        MissingInput: `transformers` is not installed.
    """
    return (_fasttext if kind == FASTTEXT else _transformers)(path, name, (positive, negative))


Sides = tuple[Sequence[str], Sequence[str]]
"""Positive and negative labels."""


def _chosen(labels: Sequence[str], sides: Sides, name: str) -> tuple[list[int], npt.NDArray[np.float64]]:
    """Places of the labels of both sides, and their signs."""
    places = []
    for field, side in zip(("positive", "negative"), sides, strict=True):
        named = [label.removeprefix("__label__") for label in side]
        if [label for label in named if label not in labels] or (field == "positive" and not named):
            raise ConfigError(
                f"classifier {name}: {field} = {list(side)}, but the model's labels are {list(labels)[:12]}"
                f"{' ...' if len(labels) > 12 else ''}. Name those whose probability is the score."
            )
        places.append([labels.index(label) for label in named])
    return places[0] + places[1], np.repeat([1.0, -1.0], [len(side) for side in sides])


def _fasttext(path: Path, name: str, sides: Sides) -> tuple[Scorer, list[str]]:
    from data_pipeline.kernels.fasttext_scores import load_classifier, score_labels
    from governance.kernels.buffers import text_buffers

    model = load_classifier(path)
    chosen, signs = _chosen(model.labels, sides, name)

    def score(texts: pa.ChunkedArray | pa.Array) -> npt.NDArray[np.float64]:
        chances = score_labels(*text_buffers(texts), model, chosen)
        found: npt.NDArray[np.float64] = (chances * signs).sum(axis=1)
        return found

    return score, list(model.labels)


def _transformers(path: Path, name: str, sides: Sides) -> tuple[Scorer, list[str]]:
    tokenizer, model, device, longest = load_classifier_of(f"classifier {name}", path, "sequence")
    import torch

    labels = [str(model.config.id2label[index]) for index in range(model.config.num_labels)]
    chosen, signs = ([0], np.ones(1)) if len(labels) == 1 else _chosen(labels, sides, name)
    several = model.config.problem_type == "multi_label_classification"

    def score(texts: pa.ChunkedArray | pa.Array) -> npt.NDArray[np.float64]:
        column = texts.to_pylist()
        found = np.zeros(len(column))
        order = sorted(range(len(column)), key=lambda place: len(column[place]))
        for start in range(0, len(order), _BATCH):
            places = order[start : start + _BATCH]
            batch = tokenizer(
                [column[place] for place in places], truncation=True, max_length=longest, padding=True,
                return_tensors="pt",
            ).to(device)  # fmt: skip
            if not batch["input_ids"].shape[1]:  # texts without a token: one of padding replaces each
                batch = tokenizer([tokenizer.pad_token] * len(places), return_tensors="pt").to(device)
            batch["attention_mask"][batch["attention_mask"].sum(dim=1) == 0, 0] = 1
            with torch.inference_mode():
                logits = model(**batch).logits.double()
            values = logits if len(labels) == 1 else logits.sigmoid() if several else logits.softmax(dim=1)
            found[places] = (values[:, chosen].cpu().numpy() * signs).sum(axis=1)
        return found

    return score, labels
