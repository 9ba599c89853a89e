"""Names and places by a token classifier of `transformers`.

The probability of a type is the sum over the labels that mean it (B-PER and I-PER are one). It runs in batches of
windows of like length, on a GPU where there is one, with one thread on a CPU: sums do not depend on the cores.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from data_pipeline.pii.detections import ENTITIES, Detection
from data_pipeline.pii.entities.finder_settings import Finder, FinderConfig, meanings
from data_pipeline.transformers_models import load_classifier_of
from governance.errors import ManifestError, PipelineError

_BATCH = 32
_STRIDE = 32  # tokens that two pieces of a window share when it has more than the model takes


def open_windows(config: FinderConfig, path: Path) -> Finder:
    """The finder for windows of text.

    Raises:
        MissingInput: `transformers` is not installed.
        ManifestError: the folder is not a token classifier, or its tokenizer gives no offsets.
        ConfigError: none of its labels means a name or a place.
    """
    tokenizer, model, device, longest = load_classifier_of("data.pii.finder", path, "token")
    if not tokenizer.is_fast:
        raise ManifestError(f"data.pii.finder: the tokenizer of {path} does not give the places of its tokens.")
    import torch

    labels = [str(model.config.id2label[index]) for index in range(model.config.num_labels)]
    types = meanings(labels, config)
    kinds = [kind for kind in ENTITIES if kind in types.values()]
    sums = torch.zeros(len(labels), len(kinds), dtype=torch.float64)
    for place, label in enumerate(labels):
        if label in types:
            sums[place, kinds.index(types[label])] = 1

    def find(windows: Sequence[str]) -> list[list[Detection]]:
        found: list[list[Detection]] = [[] for _ in windows]
        order = sorted(range(len(windows)), key=lambda place: (len(windows[place]), place))
        for start in range(0, len(order), _BATCH):
            places = order[start : start + _BATCH]
            batch = tokenizer(
                [windows[place] for place in places], truncation=True, max_length=longest, padding=True,
                stride=min(_STRIDE, longest // 4), return_overflowing_tokens=True, return_offsets_mapping=True,
                return_special_tokens_mask=True, return_tensors="pt",
            )  # fmt: skip
            if not batch["input_ids"].shape[1]:
                continue
            spans, special = batch.pop("offset_mapping").tolist(), batch.pop("special_tokens_mask").tolist()
            owners = [places[owner] for owner in batch.pop("overflow_to_sample_mapping").tolist()]
            batch["attention_mask"][batch["attention_mask"].sum(dim=1) == 0, 0] = 1
            chances = (_probabilities(model, batch.to(device)) @ sums).tolist()
            for owner, row, marks, skipped in zip(owners, chances, spans, special, strict=True):
                found[owner] += _marks(row, marks, skipped, kinds, config.min_score)
        return found

    return find


def _marks(
    chances: Sequence[Sequence[float]],
    spans: Sequence[tuple[int, int]],
    special: Sequence[int],
    kinds: Sequence[str],
    least: float,
) -> Iterator[Detection]:
    for row, (start, end), skipped in zip(chances, spans, special, strict=True):
        if skipped or start == end:
            continue
        best = max(range(len(kinds)), key=lambda place: row[place])
        if not math.isfinite(sum(row)):
            raise PipelineError(
                "data.pii.finder: the model's score of a token is not a number. Its weights are damaged or overflow: "
                "fetch the model again, or use another."
            )
        if row[best] >= least and row[best] > 0:
            yield Detection(start, end, kinds[best])


def _probabilities(model: Any, batch: Any) -> Any:
    """Probabilities of the labels, on the CPU in float64."""
    import torch

    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        with torch.inference_mode():
            return model(**batch).logits.double().softmax(dim=-1).cpu()
    finally:
        torch.set_num_threads(threads)
