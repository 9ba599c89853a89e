"""Values of a run from TOML files, with their origins.

    base = "1b.toml"      # merged below this file; found next to it, else among the shipped configurations
    [model]
    preset = "1b"         # the [model] of a shipped configuration, below the keys of this section

A file wins over its base, a later file over an earlier one, and `--set` over all. Tables merge key by key; arrays and
other values are replaced whole. Relative paths in each file start from the folder of the first one named that is not
shipped.
"""

from __future__ import annotations

import copy
import difflib
import functools
import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from data_pipeline.tokens.tokenizer import TokenizerConfig
from governance.config import apply_override, flat, read_toml, validate
from governance.errors import ConfigError
from governance.log import get_logger
from pretrain.config.model import ModelConfig
from pretrain.distributed.process_group import read_ranks
from pretrain.model.flops import parameter_count

CONFIGS = Path(__file__).with_name("configs")
"""The shipped configurations and policies."""
_TOKENS_PER_PARAMETER = 20
"""Compute-optimal number of tokens (arXiv:2203.15556)."""
_TUNING_ROWS = 32
"""Rows of a batch of labelled texts or chats, as fine-tuning commonly has."""
_UNUSED: dict[str, dict[str, Any]] = {
    "model": {
        "hidden_size": 8,
        "intermediate_size": 8,
        "num_hidden_layers": 1,
        "num_attention_heads": 1,
        "num_key_value_heads": 1,
        "max_position_embeddings": 1 << 20,
    },
    "optim": {"learning_rate": 1e-3},
    "train": {"global_batch_size": 8, "steps": 1},
}
"""Sections of a file that only prepares a corpus; no data stage reads them."""
_NO_SOURCE = {"type": "text", "name": "none", "paths": ["none.txt"], "licence": "NOASSERTION"}
_NOT_USED = "not used by this command"
Needs = Literal["all", "data", "data and policy", "model", "data or model"]
"""Parts of a run's file that a command uses."""


@dataclass
class RunFile:
    """Merged values, their origins and the files read."""

    values: dict[str, Any] = field(default_factory=dict)
    origins: dict[str, str] = field(default_factory=dict)
    """Dotted name of a value -> file, "--set" or the reason of a default."""
    files: list[Path] = field(default_factory=list)

    @property
    def has_model(self) -> bool:
        """True if a file names a model."""
        return self.origins.get("model.hidden_size") != _NOT_USED


def read_run_file(paths: Sequence[Path], overrides: Sequence[str] = ()) -> RunFile:
    """Merge files from left to right, then overrides.

    Raises:
        ConfigError: a file is missing or wrong, or a base leads back to itself.
    """
    found = RunFile()
    for path in paths:
        before = copy.deepcopy(found.values)
        for layer, values in _layers(path, ()):
            _merge(found, values, f"shipped {layer.name}" if is_shipped(layer) else str(layer))
            found.files.append(layer)
        _warn_of_replaced(before, found.values, path)
    for override in overrides:
        apply_override(found.values, override)
        found.origins[override.partition("=")[0].strip()] = "--set"
    if "preset" in _table(found.values, "model"):  # a file's is replaced by its values
        raise ConfigError(
            "--set model.preset: a preset is below the keys of a file. Put it into [model] of the run's file, or name "
            f"the shipped file after it: {paths[0]} configs/1b.toml"
        )
    return found


def _warn_of_replaced(before: dict[str, Any], after: dict[str, Any], path: Path) -> None:
    """Warn where a file replaces settings of a complete run."""
    if not {"data", "model"} <= before.keys() or not read_ranks().first:
        return
    old, new = (dict(flat(values)) for values in (before, after))
    replaced = [name for name in old if old[name] != new.get(name)]
    if replaced:
        get_logger(__name__).warning(
            "%s replaces %d setting(s) of the files before it: %s%s. assay config show prints the result",
            path, len(replaced), ", ".join(replaced[:5]), ", ..." if len(replaced) > 5 else "",
        )  # fmt: skip


def is_shipped(path: Path) -> bool:
    """Return whether a file is one of the shipped configurations."""
    return path.parent.resolve() == CONFIGS.resolve()


def names_of() -> list[str]:
    """Names of the shipped configurations."""
    return sorted(path.stem for path in CONFIGS.glob("*.toml") if not path.stem.startswith("policy"))


def _layers(path: Path, children: tuple[Path, ...]) -> Iterator[tuple[Path, dict[str, Any]]]:
    """A file after its bases and the preset of its model."""
    children = (*children, path.resolve())
    values = read_toml(path)
    bases = values.pop("base", [])
    for name in bases if isinstance(bases, list) else [bases]:
        if not isinstance(name, str):
            raise ConfigError(f"{path}: base = {bases!r}: give the path of a TOML file, or a list of paths")
        base = path.parent / name if _exists(path.parent / name) else CONFIGS / name
        if not _exists(base):
            shipped = ", ".join(f"{known}.toml" for known in names_of())
            raise ConfigError(f"{path}: base = {name!r}: no such file next to it; the shipped ones are: {shipped}")
        if base.resolve() in children:
            raise ConfigError(f"{path}: base = {name!r} leads back to this file; remove it there or here")
        yield from _layers(base, children)
    if isinstance(model := values.get("model"), dict) and "preset" in model:
        name = model.pop("preset")
        if name not in (known := names_of()):
            near = difflib.get_close_matches(str(name), known, n=1)
            hint = f"did you mean {near[0]!r}?" if near else f"the presets are: {', '.join(known)}"
            raise ConfigError(f"{path}: model.preset = {name!r}: no such preset; {hint}")
        yield CONFIGS / f"{name}.toml", {"model": read_toml(CONFIGS / f"{name}.toml")["model"]}
    yield path, values


def _exists(path: Path) -> bool:
    """Return whether a path exists.

    A name that no file system accepts does not.
    """
    try:
        return path.exists()
    except (OSError, ValueError):  # too long; a null byte
        return False


def _merge(found: RunFile, values: dict[str, Any], origin: str) -> None:
    def merge(target: dict[str, Any], new: dict[str, Any], above: str) -> None:
        for key, value in new.items():
            name = f"{above}{key}"
            if isinstance(value, dict) and isinstance(target.get(key), dict):
                merge(target[key], value, f"{name}.")
                continue
            target[key] = value
            for old in [old for old in found.origins if old.startswith(f"{name}.")]:
                del found.origins[old]
            found.origins.update((below, origin) for below, _ in flat(value, name))

    merge(found.values, values, "")


def fill_defaults(found: RunFile, folder: Path, needs: Needs) -> None:
    """Fill in the policy and what follows from the model's size.

    No value of a file is changed.

    `needs` is what the command uses: with "data" the sections of the training may be missing, with "model" the corpus
    may. A command that uses the policy warns where it is the shipped one.

    Raises:
        ConfigError: there is no corpus or no model, and the command needs it.
    """
    if "sources" not in _table(found.values, "data"):
        if "model" not in needs:
            raise ConfigError(
                f"{found.files[0]}: has no [[data.sources]]. Add one, or name a file with your corpus first: assay run "
                f"corpus.toml {found.files[0]}"
            )
        _fill(found, "data", "sources", [_NO_SOURCE], _NOT_USED)
    _require_model(found, needs)
    policy = _table(found.values, "governance").get("policy", "policy.toml")
    own = not found.origins.get("governance.policy", "shipped").startswith("shipped")
    if isinstance(policy, str) and not own and not (folder / policy).exists() and (CONFIGS / policy).exists():
        _table(found.values, "governance").pop("policy", None)
        shipped = str(CONFIGS.absolute() / policy)
        _fill(found, "governance", "policy", shipped, "the shipped policy")
        if needs in ("all", "data and policy") and read_ranks().first:
            _warn_of_shipped_policy(folder / policy, shipped)
    data = _table(found.values, "data")
    length = _table(data, "pack").get("sequence_length")
    if "data" in needs and "model" not in found.values:
        for section in [section for section in _UNUSED if section not in found.values]:
            for key, value in _UNUSED[section].items():
                _fill(found, section, key, value, _NOT_USED)
        if "sequence_length" not in _table(found.values, "train"):
            _fill(found, "train", "sequence_length", length or 8, _NOT_USED)
    try:
        model = validate(found.values.get("model", {}), ModelConfig, "")
        tokenizer = validate(_table(data, "tokenizer"), TokenizerConfig, "")
    except ConfigError:
        return  # the validation of the whole file reports it with all other faults
    _fill(found, "train", "sequence_length", length or model.max_position_embeddings, "the model's longest row")
    _fill_for_size(found, parameter_count(model, tokenizer.vocabulary_size))


@functools.cache
def _warn_of_shipped_policy(policy: Path, shipped: str) -> None:
    """Warn that a run has no policy, once.

    An experiment loads the run for each training.
    """
    get_logger(__name__).warning(
        "the run has no policy of its own (no [governance] policy, and no %s): the shipped policy %s judges this "
        "corpus. Write a copy to edit next to the run's file: assay init %s --from %s", policy, shipped, policy.parent,
        policy.stem,
    )  # fmt: skip


def _require_model(found: RunFile, needs: Needs) -> None:
    if "model" not in found.values and "data" not in needs:
        files = " ".join(map(str, found.files))
        raise ConfigError(
            f'{files}: has no [model]. Add one, [model] preset = "10m" for example, or name a size after your file: '
            f"assay run {files} configs/10m.toml"
        )


def _fill_for_size(found: RunFile, parameters: int) -> None:
    """Fill in batch, steps and learning rate.

    Batch and rate follow the scaling laws of arXiv:2401.02954, the steps 20 tokens per parameter.
    """
    train, reason = _table(found.values, "train"), f"default for {parameters:,} parameters"
    length, tokens = train.get("sequence_length"), _TOKENS_PER_PARAMETER * parameters
    if not _is_count(length):
        return
    rows = 0.2920 * (6 * parameters * tokens) ** 0.3271 / length
    if _is_tuning(found):
        _fill(found, "train", "global_batch_size", _TUNING_ROWS, "default for labelled texts and chats")
    _fill(found, "train", "global_batch_size", 2 ** max(0, round(math.log2(rows))), reason)
    rows = train["global_batch_size"]
    if not _is_count(rows):
        return
    if rows % 8:
        _fill(found, "engine", "micro_batch_size", math.gcd(rows, 8), "default for this global batch")
    _fill(found, "train", "steps", math.ceil(tokens / (rows * length)), reason)
    steps, optim = train["steps"], _table(found.values, "optim")
    if "learning_rate" in optim or not _is_count(steps):
        return
    rate = min(3e-3, 0.3118 * (6 * parameters * steps * rows * length) ** -0.125)
    _fill(found, "optim", "learning_rate", float(f"{rate:.2g}"), reason)
    _fill(found, "optim", "warmup_steps", min(2000, max(1, steps // 50)), "default for these steps")
    if optim.get("schedule", "wsd") == "wsd":
        _fill(found, "optim", "decay_steps", steps // 5, "default for these steps")


def _is_tuning(found: RunFile) -> bool:
    """Return whether labels or answers are learned.

    Such sets are small: the law of pretraining would fill a batch with all of one.
    """
    encode = _table(_table(found.values, "data"), "encode")
    return "classification" in encode or encode.get("loss_on") == "answers"


def _fill(found: RunFile, section: str, key: str, value: Any, reason: str) -> None:
    target = found.values.setdefault(section, {})
    if isinstance(target, dict) and key not in target:
        target[key] = value
        found.origins[f"{section}.{key}"] = reason


def _table(values: Any, name: str) -> dict[str, Any]:
    """The table of this name, or a new one."""
    found = values.get(name) if isinstance(values, dict) else None
    return found if isinstance(found, dict) else {}


def _is_count(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and value > 0
