"""Native shards: one file per rank, for fast restarts.

    <root>/checkpoint-native/<key>/shards/00000.safetensors    what rank 0 owned, "<name>.master", "<name>.<moment>",
                                                               flat fp32; metadata: the first element of each fragment
                                   manifest.json               world size and ZeRO stage; the checkpoint's digest

They hold nothing that the canonical checkpoint lacks, and count only together with it: their manifest is written after
it and names its digest. A run with the same ranks and ZeRO stage reads them, each rank its own file; any other layout,
or one whose shards are torn, reads the canonical form. Ranks also read the fragments of canonical files from each
other's shards (`canonical.py` has the offsets). Price: another 12 bytes per parameter on disk (AdamW), for the
newest checkpoint only.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from governance.config import Section
from governance.errors import CheckpointError, ManifestError
from governance.files import remove_tree
from governance.manifest import FILE_NAME, Manifest, Output, describe, read_manifest
from governance.stage import Recipe, artifact_folder
from pretrain.checkpoint.format import CheckpointStore
from pretrain.checkpoint.safetensors_files import TensorEntry, map_tensors, write_tensors
from pretrain.config.training import EngineConfig

if TYPE_CHECKING:
    from pretrain.engine.fragments import Owned
    from pretrain.engine.tensor_parallel import ReadStretch

VERSION = 1
STAGE = "checkpoint-native"


class NativeIdentity(Section):
    """Recipe of native shards: the layout that owns them."""

    train_key: str
    """Key of the training run."""
    step: int
    world_size: int
    zero_stage: int


def identity(store: CheckpointStore, step: int, world_size: int, zero_stage: int) -> NativeIdentity:
    """Recipe of this layout's shards at `step`."""
    return NativeIdentity(train_key=store.train_key, step=step, world_size=world_size, zero_stage=zero_stage)


def reads_native(engine: EngineConfig) -> bool:
    """Return whether this layout can resume from native shards.

    Tensor parallelism has parts of matrices, which have none; the shards' recipe does not say which rank holds which
    experts; weights in files cannot be written to.
    """
    return engine.tensor_parallel_size * engine.expert_parallel_size == 1 and engine.offload_parameters != "nvme"


def native_key(store: CheckpointStore, of: NativeIdentity) -> str:
    """Key of these shards."""
    return Recipe(STAGE, VERSION, of).key([store.inputs[0].digest])


def native_folder(store: CheckpointStore, of: NativeIdentity) -> Path:
    """Folder of these shards."""
    return artifact_folder(STAGE, native_key(store, of), store.root)


def shard_path(folder: Path, rank: int) -> Path:
    """File of a rank."""
    return folder / "shards" / f"{rank:05d}.safetensors"


def write_shard(folder: Path, root: Path, rank: int, fragments: Sequence[Owned]) -> Output:
    """Write and hash what this rank owns.

    Raises:
        StorageError: the disk is full or failing.
    """
    entries = [
        TensorEntry(f"{fragment.name}.{kind}", (fragment.length,), [tensor])
        for fragment in fragments
        for kind, tensor in fragment.tensors.items()
    ]
    starts = {fragment.name: fragment.start for fragment in fragments}
    write_tensors(shard_path(folder, rank), entries, {"starts": json.dumps(starts, sort_keys=True)})
    return describe(shard_path(folder, rank), root)


def read_shard(path: Path) -> list[Owned]:
    """Fragments of a shard, memory-mapped.

    Raises:
        CheckpointError: it is torn, or not a shard.
    """
    from pretrain.engine.fragments import Owned

    tensors, metadata = map_tensors(path)
    try:
        starts: dict[str, int] = json.loads(metadata["starts"])
        kinds: dict[str, dict[str, Any]] = {name: {} for name in starts}
        for key, array in tensors.items():
            name, _, kind = key.rpartition(".")
            kinds[name][kind] = array
        return [Owned(name, start, len(kinds[name]["master"]), kinds[name]) for name, start in starts.items()]
    except (KeyError, ValueError) as error:
        raise CheckpointError(f"{path}: is not a native shard: {error}") from error


def native_manifest(
    store: CheckpointStore, of: NativeIdentity, outputs: Sequence[Output], checkpoint: Manifest, run: dict[str, Any]
) -> Manifest:
    """Manifest of the shards of `checkpoint`, without which they do not count."""
    return Manifest(
        stage=STAGE,
        version=VERSION,
        key=native_key(store, of),
        config=of.model_dump(mode="json"),
        inputs=store.inputs[:1],
        outputs=tuple(sorted(outputs, key=lambda output: output.path)),
        stats={"step": of.step, "checkpoint": {"path": checkpoint.path, "digest": checkpoint.digest}},
        run=run,
    )


def find_native(store: CheckpointStore, of: NativeIdentity, checkpoint: Manifest) -> Manifest | None:
    """Manifest of this layout's shards of `checkpoint`; None if missing or torn."""
    path = native_folder(store, of) / FILE_NAME
    if not path.exists():
        return None
    try:
        manifest = read_manifest(path)
    except ManifestError:
        return None
    named = (manifest.key, manifest.config.get("train_key"), manifest.stats["checkpoint"]["digest"])
    return manifest if named == (native_key(store, of), store.train_key, checkpoint.digest) else None


def remove_native(store: CheckpointStore, kept: Path | None) -> None:
    """Remove this run's native shards, except folder `kept`."""
    for name in store.natives():
        folder = store.root / STAGE / name
        if folder != kept and folder.exists():
            remove_tree(folder)


def reader(fragments: Sequence[Owned]) -> ReadStretch:
    """Reader of `place_fragments` over these fragments.

    Raises, when it is called:
        CheckpointError: they lack the requested elements: they belong to another model or layout.
    """
    import torch

    by_name: dict[str, list[Owned]] = {}
    for fragment in fragments:
        by_name.setdefault(fragment.name, []).append(fragment)

    def read(name: str, start: int, length: int) -> dict[str, Any]:
        pieces = sorted(by_name.get(name, ()), key=lambda fragment: fragment.start)
        pieces = [piece for piece in pieces if piece.length]
        if not pieces or pieces[0].start != start or sum(piece.length for piece in pieces) != length:
            raise CheckpointError(f"native shards: lack elements {start} to {start + length} of {name}")
        parts = {kind: [torch.from_numpy(piece.tensors[kind]) for piece in pieces] for kind in pieces[0].tensors}
        return {kind: tensors[0] if len(tensors) == 1 else torch.cat(tensors) for kind, tensors in parts.items()}

    return read
