"""Checkpoint retention: remove old ones once newer ones are durable."""

from __future__ import annotations

import functools
import re
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

from governance.files import remove_tree
from governance.log import get_logger
from governance.manifest import FILE_NAME
from pretrain.checkpoint.format import STAGE, CheckpointStore
from pretrain.checkpoint.native import STAGE as NATIVE
from pretrain.config.training import CheckpointConfig

_CHECKPOINT = re.compile(rf"\b{STAGE}/[0-9a-f]{{16}}/")


def kept_steps(steps: Sequence[int], config: CheckpointConfig, validations: Sequence[dict[str, Any]]) -> dict[int, str]:
    """Steps to keep, with reasons, oldest first.

    The best are those of least validation loss at their own step; if two are equal, the earlier one. A checkpoint
    without a finite validation loss is never among them.
    """
    kept = {step: "last" for step in steps[-config.keep_last :]}
    if config.keep_every_steps:
        kept |= {step: "every" for step in steps if step % config.keep_every_steps == 0}
    if config.keep_best:
        losses = {row["step"]: row["loss"] for row in validations if row["loss"] is not None}
        best = sorted(losses.keys() & set(steps), key=lambda step: (losses[step], step))[: config.keep_best]
        kept |= {step: "best" for step in best}
    return kept


def remove_old(
    store: CheckpointStore, config: CheckpointConfig, newest: int, validations: Sequence[dict[str, Any]]
) -> None:
    """Remove checkpoints up to `newest` that `config` does not keep.

    Unfinished ones are removed too. One that an artifact's manifest names (a finished run, an audit, a checkpoint of a
    run that continues it) stays, and is logged.
    """
    older = [step for step in store.steps() if step <= newest and store.folder(step).exists()]
    finished = [step for step in older if (store.folder(step) / FILE_NAME).exists()]
    kept = kept_steps(finished, config, validations)
    surplus = [step for step in older if step not in kept]
    needed = _needed(store, [store.folder(step) for step in surplus], map(store.folder, older))
    for step in surplus:
        if store.folder(step) in needed:
            get_logger(__name__).info("checkpoint of step %d is kept: %s needs it", step, needed[store.folder(step)])
        else:
            remove_tree(store.folder(step))


def _needed(store: CheckpointStore, folders: Sequence[Path], own: Iterable[Path]) -> dict[Path, str]:
    """Checkpoints that the manifest of another artifact names, with its path.

    A manifest lists its inputs by path, so a checkpoint's folder in its text means that the artifact rests on it. The
    run's `own` checkpoints rest on none of each other, and are not read.
    """
    root, known = store.root, set(own)
    names = {folder.relative_to(root).as_posix() + "/": folder for folder in folders}
    found: dict[Path, str] = {}
    if not names:
        return found
    for path in root.glob(f"*/*/{FILE_NAME}"):
        if path.parts[-3] == NATIVE or path.parent in known:
            continue
        try:
            state = path.stat()
            named = _named(path, (state.st_ino, state.st_mtime_ns, state.st_size))
        except FileNotFoundError:
            continue  # another run of this root removed it since the glob
        naming = path.relative_to(root).as_posix()
        found |= {names[name]: naming for name in named & names.keys() if names[name] != path.parent}
    return found


@functools.lru_cache(maxsize=1 << 16)
def _named(path: Path, version: tuple[int, int, int]) -> frozenset[str]:
    """Folders of checkpoints in a manifest's text; each version is read once."""
    return frozenset(_CHECKPOINT.findall(path.read_text(encoding="utf-8", errors="replace")))
