"""Token shards with and without some documents, and the weights of trainings; for tests and ranks."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from data_pipeline.tokens.token_shards import document_identity, write_token_shard
from governance.manifest import Manifest, describe, read_manifest, write_manifest
from governance.replay.replay_statement import weights_of
from governance.stage import Runtime
from pretrain.config.training import TrainConfig
from pretrain.data.dataset import Rows, open_rows
from pretrain.data.sampler import sampler_of
from tests.pretrain.rank_runs import load_conftest

conftest = load_conftest()


def identities_of(names) -> tuple[str, ...]:
    return tuple(sorted(document_identity(name).hex() for name in names))


def blanked(document):
    """A document of which nothing is left but its length: the made corpus never held it."""
    tokens = np.zeros_like(document.tokens)
    return replace(document, tokens=tokens, answers=np.zeros(len(tokens), bool))


def write_tokens(root: Path, seed: int = 0, without=(), packed: int = 0) -> Manifest:
    """The same documents for one seed; those named in `without` are blanked, the others are answers as a whole.

    So nothing of the product's mask is in the corpus that never held them.
    """
    folder, generator = root / "encode" / ("e" * 16), np.random.default_rng(seed)
    outputs = []
    for role, count in (("train", 240 if packed else 60), ("validation", 10)):
        for shard in range(2):
            names = [f"{role}{shard}/{index}" for index in range(count // 2)]
            made = [conftest._document(generator, name, packed or 80) for name in names]
            if without:
                whole = [replace(one, answers=np.ones(len(one.tokens), bool)) for one in made]
                made = [blanked(one) if one.id in without else one for one in whole]
            path = folder / role / f"{shard:05d}.tokens"
            write_token_shard(path, made, conftest.VOCABULARY, 0)
            outputs.append(describe(path, root))
    manifest = Manifest(stage="encode", version=1, key="e" * 64, config={}, inputs=(), outputs=tuple(outputs), stats={},
                        run={})  # fmt: skip
    write_manifest(manifest, root)
    if not packed:
        return manifest
    from data_pipeline.tokens.pack import PackConfig, pack

    return pack(manifest, PackConfig(sequence_length=packed), Runtime(root))


def train(root: Path, tokens: Manifest, **settings) -> Manifest:
    """Train as the fixture does, on these tokens."""
    made, conftest._make_tokens = conftest._make_tokens, lambda root: tokens
    try:
        return conftest._run_training(root, **settings)
    finally:
        conftest._make_tokens = made


def learned(root: Path, run: Manifest) -> dict[str, str]:
    """Digests of the last weights."""
    return weights_of(read_manifest(root / run.stats["checkpoint"]["path"]))


def checkpoint_at(root: Path, run: Manifest, step: int) -> str:
    [found] = [
        path.parent
        for path in root.glob("checkpoint/*/manifest.json")
        if (one := read_manifest(path)).config["step"] == step and one.config["train_key"] == run.key
    ]
    return str(found)


def last_read(root: Path, tokens: Manifest, options: dict[str, Any], count: int = 2) -> tuple[list[str], int]:
    """The documents of one shard whose first reading is the latest, and the first step that reads one of them."""
    rows = rows_of(root, tokens)
    plain = {"sequence_length": 32, **options}
    config = TrainConfig(**{name: value for name, value in plain.items() if name in TrainConfig.model_fields})
    order, found = sampler_of(rows, config), []
    for name in (f"train0/{index}" for index in range(30)):
        steps = order.steps_that_read(rows.holding(frozenset([document_identity(name)])), config.steps)
        found += [(steps[0], name)] if steps else []
    chosen = sorted(found)[-count:]
    return [name for _, name in chosen], chosen[0][0]


def holding(rows: Rows, names) -> list[int]:
    """Rows with a token of one of these documents: every row is looked at."""
    wanted = set(identities_of(names))
    return [number for number in range(rows.count) if wanted & set(rows.documents_of([number]))]


def rows_of(root: Path, tokens: Manifest, role: str = "train") -> Rows:
    return open_rows(tokens, role, root, 32)
