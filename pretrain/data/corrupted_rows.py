"""Rows with spans left out (`train.span_corruption`), by their tokenizer's sentinels."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

from governance.errors import ConfigError
from governance.manifest import Manifest, read_manifest
from pretrain.config.training import TrainConfig
from pretrain.data.dataset import Rows, packed_from
from pretrain.data.tokenizer_check import tokenizer_of


def corrupted_rows(rows: Rows, tokens: Manifest, train: TrainConfig, root: Path) -> Rows:
    """The rows as an encoder-decoder learns from texts; unchanged without the setting.

    Raises:
        ConfigError: the tokenizer has too few sentinels, or some tokens of the texts are not to be predicted.
        MissingInput: the tokenizer is gone.
    """
    config = train.span_corruption
    if config is None:
        return rows
    from pretrain.encoder_decoder.span_corruption import SpanCorruption, sentinels_of

    encoded = packed_from(tokens, root) if tokens.stage == "pack" else tokens
    if (loss_on := encoded.config.get("loss_on", "all")) != "all":
        raise ConfigError(
            f"train.span_corruption with data.encode.loss_on = {loss_on!r}: spans are taken from whole texts, and may "
            f"hide tokens that are not to be learned. Remove one of the two"
        )
    special = read_manifest(root / tokenizer_of(tokens, root).path).stats.get("special_tokens", {})
    sentinels = sentinels_of(special, config, train.sequence_length)
    return replace(rows, corruption=SpanCorruption(config, sentinels, rows.shards[0].end_of_document))
