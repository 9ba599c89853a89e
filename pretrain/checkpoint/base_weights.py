"""Base of a training with frozen parameters: its first weights, stored once.

    <root>/base_weights/<key>/weights/00000.safetensors    each parameter of `train.initial_weights`, fp32, by its name
                              manifest.json                input: the folder of weights, by its digest

Checkpoints of such a training hold the parameters that learn, and the path and digest of the base's manifest (`stats`,
"base"). `WholeWeights` joins the two, with adapters added to their matrices: the model that the run has trained. Price:
4 bytes per parameter on disk, once for a base and a root, whatever the number of runs and checkpoints.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

from governance.config import Section
from governance.errors import CheckpointError, ManifestError, MissingInput
from governance.files import remove_file
from governance.hooks import Attest
from governance.manifest import FILE_NAME, Input, Manifest, describe, read_manifest, verify
from governance.stage import Recipe, artifact_folder, commit, find
from pretrain.checkpoint.safetensors_files import TensorEntry, TensorFiles, file_plan, write_tensors
from pretrain.config.model import ModelConfig
from pretrain.config.training import AdapterConfig
from pretrain.finetuning.trained_parameters import DOWN, HEAD, UP
from pretrain.model.flops import parameter_shapes

VERSION = 2
STAGE = "base_weights"
_FILE_BYTES = 1 << 30


class BaseIdentity(Section):
    """Recipe of a base: the model whose parameters it holds."""

    model: ModelConfig
    vocabulary_size: int


def keep_base(
    of: BaseIdentity, source: Input, read: Callable[[str, Any], Any], root: Path, attest: Attest, run: dict[str, Any]
) -> Manifest:
    """Store the weights of `source` unless they are stored already.

    `read(name, shape)` returns a parameter.

    Raises:
        StorageError: the disk is full.
    """
    key = Recipe(STAGE, VERSION, of).key([source.digest])
    if (known := find(STAGE, key, root)) is not None and not verify(known, root):
        return known
    folder, shapes = artifact_folder(STAGE, key, root), parameter_shapes(of.model, of.vocabulary_size)
    if of.model.num_labels:
        del shapes[HEAD]  # it is new, and learns
    remove_file(folder / FILE_NAME)
    outputs = []
    for number, names in enumerate(file_plan(list(shapes.items()), _FILE_BYTES)):
        path = folder / "weights" / f"{number:05d}.safetensors"
        tensors = {name: read(name, shapes[name]) for name in names}
        write_tensors(path, [TensorEntry(name, shapes[name], [tensor]) for name, tensor in tensors.items()])
        outputs.append(describe(path, root))
    manifest = Manifest(
        stage=STAGE, version=VERSION, key=key, config=of.model_dump(mode="json"), inputs=(source,),
        outputs=tuple(outputs), stats={"parameters": sum(map(math.prod, shapes.values()))}, run=run,
    )  # fmt: skip
    return commit(manifest, root, attest)


def base_of(checkpoint: Manifest, root: Path) -> Manifest | None:
    """Manifest of a checkpoint's base; None where all parameters learned.

    Its files are not verified.

    Raises:
        CheckpointError: the base is gone, or another one is in its place.
    """
    named = checkpoint.stats.get("base")
    if named is None:
        return None
    again = (
        f"Restore {named['path'].rpartition('/')[0]} in {root}; or remove the manifest.json of its training and run "
        "`assay train` with its initial_weights, which stores the base again"
    )
    try:
        found = read_manifest(root / named["path"])
    except (MissingInput, ManifestError) as error:
        raise CheckpointError(
            f"{checkpoint.folder}: holds only the parameters that learned, and its base is gone: {error}. {again}"
        ) from error
    if found.digest != named["digest"]:
        raise CheckpointError(
            f"{checkpoint.folder}: was trained on the base of digest {named['digest'][:16]}…; {named['path']} has "
            f"{found.digest[:16]}…: with other weights below it every result is meaningless. {again}"
        )
    return found


def base_problems(checkpoint: Manifest, root: Path) -> list[str]:
    """Differences between the files of a checkpoint's base and their digests.

    Raises: as `base_of`.
    """
    base = base_of(checkpoint, root)
    return [] if base is None else verify(base, root)


class WholeWeights:
    """Weights of a checkpoint's whole model, by parameter name.

    A context; the weights are fp32. A matrix with an adapter is W + scale B A.
    """

    def __init__(self, checkpoint: Manifest, root: Path, adapter: AdapterConfig | None) -> None:
        base = base_of(checkpoint, root)
        self._own = TensorFiles(checkpoint.files("weights", root))
        self._base = TensorFiles([] if base is None else base.files("weights", root))
        self._adapter = adapter

    def __enter__(self) -> WholeWeights:
        self._own.__enter__()
        try:
            self._base.__enter__()
        except CheckpointError:
            self._own.__exit__()
            raise
        return self

    def __exit__(self, *error: object) -> None:
        self._own.__exit__(*error)
        self._base.__exit__(*error)

    def read(self, name: str, shape: Any = None) -> Any:
        """The whole tensor of this name.

        Raises:
            CheckpointError: it is missing or has another shape: the checkpoint belongs to another model.
        """
        held = name not in self._own and name in self._base
        found = (self._base if held else self._own).read(name, shape)
        matrix = name.removesuffix("weight")
        if self._adapter is None or f"{matrix}{UP}" not in self._own:
            return found
        product = self._own.read(f"{matrix}{UP}") @ self._own.read(f"{matrix}{DOWN}")
        return found.add_(product, alpha=self._adapter.scale)
