"""`[train] initial_weights`: start at step 0 from a Hugging Face folder.

Promise: the model computes the same logits as `transformers` (1e-5 in fp32 for models of a test's size). The folder's
digest is in the keys of the run and its checkpoints; its path is not. Its licence and the facts of its card are in the
manifests, and in the card that `assay export` writes.

The token shards must come from the folder's tokenizer. So that the number of rows is Assay's (a multiple of 128), rows
for ids that no text has are dropped, or added as the mean of the others: their probabilities together raise a loss by
ln(1 + added rows / others) at most, since a mean logit is below that of the mean probability. Rows of zeros have logits
of 0, which is above all others where a model's logits are low.
"""

from __future__ import annotations

import re
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

from governance.errors import CheckpointError, ConfigError, MissingInput
from governance.file_digests import Digests
from governance.log import get_logger
from governance.manifest import Input, Manifest
from governance.stage import Runtime
from pretrain.config.model import ModelConfig
from pretrain.config.training import TrainRecipe
from pretrain.data.tokenizer_check import tokenizer_of
from pretrain.export.architectures import tensors_of
from pretrain.export.exported_architecture import ExportedTensor, expert_bias_names
from pretrain.initial_weights.folder import FIELD, TOKENIZER, WeightsFolder, open_folder, read_object
from pretrain.initial_weights.hub_weights import SCHEME, HubWeights, fetched
from pretrain.initial_weights.model_settings import differences, lacks_bias, read_model
from pretrain.model.init import initial_weight

if TYPE_CHECKING:
    import torch

_PASSIVE = re.compile(r".*(rotary_emb\.inv_freq|attention\.(masked_)?bias|attn\.(masked_)?bias)$")
"""Buffers that older folders hold: functions of the configuration."""
_HEAD, _ROWS = "lm_head.weight", ("model.embed_tokens.weight", "lm_head.weight")


@dataclass(frozen=True)
class InitialWeights:
    """Weights of a folder, by the names of Assay's parameters."""

    folder: WeightsFolder
    model: ModelConfig
    of_hub: HubWeights | None = None
    """The hub's model from which the folder was downloaded."""

    @property
    def source(self) -> Input:
        """Input of the run's manifest."""
        return Input(stage="file", digest=self.folder.digest, path=self.folder.name)

    @cached_property
    def _tensors(self) -> dict[str, ExportedTensor]:
        """Parameter -> the folder's tensor that holds it."""
        family = str(self.folder.config["model_type"])
        names = [*(name for name in parameter_shapes(self.model, 1) if not self._is_new(name)), *self._biases]
        return {name: tensor for tensor in tensors_of(family, self.model, names) for name in tensor.sources}

    @cached_property
    def _biases(self) -> list[str]:
        """Selection biases of experts that the folder has."""
        return expert_bias_names(read_model(self.folder.config))

    def expert_bias(self) -> list[list[float]] | None:
        """Selection biases of experts; None: they begin at zero."""
        return [self.folder.read(name).tolist() for name in self._biases] or None

    def _is_new(self, name: str) -> bool:
        """Return whether a parameter is the head of a new classifier."""
        return name == _HEAD and self.model.num_labels > 0

    def weight(self, name: str, shape: torch.Size, seed: int = 0) -> torch.Tensor:
        """Initial fp32 values of a parameter.

        Those of a new head are drawn with `seed`.
        """
        import torch

        if self._is_new(name):
            return initial_weight(name, shape, self.model, seed)
        tensor = self._tensors[name]
        if tensor.name not in self.folder.tensors and lacks_bias(self.folder.config, name):
            return torch.zeros(shape)
        part = tensor.invert(self.folder.read(tensor.name))[tensor.sources.index(name)]
        if name in _ROWS and part.shape[0] != shape[0]:
            known = part[: shape[0]]
            part = torch.cat([known, known.mean(0, keepdim=True).expand(shape[0] - len(known), -1)])
        return part.contiguous()

    def check(self, vocabulary_size: int) -> None:
        """Raise unless the folder has exactly these tensors, in their shapes.

        Raises:
            CheckpointError: names the tensor, and both shapes.
        """
        import torch

        shapes, used = parameter_shapes(self.model, vocabulary_size), set()
        if self.model.moe is not None:
            shapes |= dict.fromkeys(self._biases, (self.model.moe.num_local_experts,))
        for name, tensor in self._tensors.items():
            used.add(tensor.name)
            if tensor.name not in self.folder.tensors:
                if lacks_bias(self.folder.config, name):
                    continue  # it begins at zero
                raise CheckpointError(f"{FIELD}: {self.folder.path} has no tensor {tensor.name}. Fetch it again.")
            wanted = tuple(tensor.make([torch.empty(shapes[source], device="meta") for source in tensor.sources]).shape)
            found = self.folder.shape(tensor.name)
            if name in _ROWS:
                if found[0] < vocabulary_size:
                    raise CheckpointError(
                        f"{FIELD}: {tensor.name} has {found[0]} rows, the tokenizer of the token shards has "
                        f"{vocabulary_size} tokens. Encode the corpus with the folder's tokenizer."
                    )
                found = (wanted[0], *found[1:])
            if found != wanted:
                raise CheckpointError(
                    f"{FIELD}: {tensor.name} in {self.folder.path} has shape {list(found)}, its config.json needs "
                    f"{list(wanted)}. Fetch the folder again."
                )
        known = used | ({_HEAD} if self.model.tie_word_embeddings else set())
        self._refuse_head_of_its_own()
        if self.model.num_labels:
            known |= {tensor.name for tensor in tensors_of(str(self.folder.config["model_type"]), self.model, [_HEAD])}
        if other := sorted(name for name in self.folder.tensors if name not in known and not _PASSIVE.fullmatch(name)):
            raise CheckpointError(
                f"{FIELD}: {self.folder.path} has a tensor that its config.json does not name: {other[0]}"
            )

    def _refuse_head_of_its_own(self) -> None:
        """Raise where a tied folder has an output projection of its own.

        `transformers` computes with that one.
        """
        import torch

        if not self.model.tied or _HEAD not in self.folder.tensors:
            return
        table = self._tensors[_ROWS[0]].name
        if not torch.equal(self.folder.read(_HEAD), self.folder.read(table)):
            raise CheckpointError(
                f"{FIELD}: {self.folder.path} has tie_word_embeddings = true in its config.json, and {_HEAD} differs "
                f"from {table}. Set false there and in [model], or remove {_HEAD} from the folder."
            )


def initial_weights_of(recipe: TrainRecipe, tokens: Manifest, runtime: Runtime) -> InitialWeights | None:
    """Weights that the recipe names, for these token shards, or None.

    Raises:
        MissingInput: the folder, or a file of it, is missing.
        ConfigError: its family is unknown, or `[model]` differs; names every difference.
        CheckpointError: it has a torn file, or another tokenizer than the shards.
    """
    found = open_weights(recipe, runtime)
    if found is not None:
        refuse_other_tokenizer(found.folder, tokens, runtime.root)
    return found


def open_weights(recipe: TrainRecipe, runtime: Runtime) -> InitialWeights | None:
    """Weights that the recipe names, checked against its model.

    A file's digest is cached until the file changes: every rank asks for it, and `assay slurm status` each 10 s.

    Raises: as `initial_weights_of`, but for the tokenizer.
    """
    if not recipe.train.initial_weights:
        return None
    if recipe.train.continue_from:
        raise ConfigError(f"{FIELD} with train.continue_from: a run starts from one of them; remove the other")
    folder, of_hub = named_folder(recipe.train.initial_weights, runtime)
    theirs = model_of(folder)
    if unlike := differences(theirs, recipe.model):
        raise ConfigError(
            f"{FIELD}: [model] differs from {folder.path / 'config.json'}:\n  " + "\n  ".join(unlike) + "\n  Set these."
        )
    _ = folder.tensors  # a torn file is found before anything is prepared
    return InitialWeights(folder, recipe.model, of_hub)


def named_folder(named: str, runtime: Runtime) -> tuple[WeightsFolder, HubWeights | None]:
    """Folder of weights, or of the hub's model, with its digests.

    Raises:
        MissingInput: the folder, or a file of it, is missing.
        ConfigError: the weights have another form than safetensors.
        CheckpointError: a file is not what the hub listed.
    """
    digests = Digests(replace(runtime, mode="all"))
    of_hub = fetched(named, runtime) if named.startswith(SCHEME) else None
    if of_hub is None:
        folder = open_folder(runtime.root / named, digests.of)
    else:
        folder = open_folder(of_hub.folder, digests.of, of_hub.address)
        of_hub.refuse_other(folder.files)
    digests.save()
    return folder, of_hub


def model_of(folder: WeightsFolder) -> ModelConfig:
    """The model that a folder's config.json describes.

    Raises:
        ConfigError: its family is unknown.
    """
    try:
        return read_model(folder.config)
    except ConfigError as error:
        raise ConfigError(f"{FIELD}: {folder.path}: {error}") from error


def refuse_other_tokenizer(folder: WeightsFolder, tokens: Manifest, root: Path) -> None:
    """Raise if another tokenizer than the folder's encoded the token shards."""
    try:
        ours = tokenizer_of(tokens, root)
        path = root / Path(ours.path).parent / TOKENIZER
        if not path.exists():
            raise MissingInput(f"{path} is missing")
    except MissingInput as error:
        get_logger(__name__).warning(
            "%s: cannot verify that %s has the tokenizer of the token shards: %s", FIELD, folder.path, error
        )
        return
    if _encoding(path) != _encoding(folder.path / TOKENIZER):
        raise CheckpointError(
            f"{FIELD}: {folder.path / TOKENIZER} is another tokenizer than that of the token shards ({path}), so ids "
            f"mean other texts. Prepare the corpus with the folder's tokenizer."
        )


def _encoding(path: Path) -> dict[str, Any]:
    """Parts of a tokenizer file that decide the ids of a text."""
    held = read_object(path)
    model = {name: value for name, value in held.get("model", {}).items() if value not in (None, False)}
    if "merges" in model:  # pairs, or texts with a blank between: two forms of one list
        model["merges"] = [merge if isinstance(merge, str) else " ".join(merge) for merge in model["merges"]]
    added = sorted(
        held.get("added_tokens", []), key=lambda token: token["id"]
    )  # with their flags: lstrip, normalized ...
    kept = {name: held.get(name) for name in ("normalizer", "pre_tokenizer")}
    return {**kept, "model": model, "added_tokens": added}


def parameter_shapes(model: ModelConfig, vocabulary_size: int) -> dict[str, tuple[int, ...]]:
    """Shapes of the model's parameters by name; allocates no weights."""
    import torch

    from pretrain.encoder_decoder.model_of_pairs import make_model

    with torch.device("meta"):
        decoder = make_model(model, vocabulary_size)
    return {name: tuple(parameter.shape) for name, parameter in decoder.named_parameters()}
