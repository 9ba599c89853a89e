"""Files and folders that jobs read: mounts of a container, frozen copies."""

from __future__ import annotations

import contextlib
import os
import re
from collections.abc import Iterator, Sequence
from dataclasses import replace
from importlib import metadata
from pathlib import Path
from typing import Any

from pydantic import BaseModel

from assay.config import LoadedRun
from data_pipeline.readers.sources import OwnSource
from governance.config import read_toml
from governance.gate.policy import policy_files
from governance.log import get_logger
from governance.own_code import find_code
from governance.signing.dsse import default_key_path, key_id, private_key
from governance.signing.home_anchor import state_folder
from governance.signing.running_digests import JOB_RECORDS
from governance.stage import Runtime, ShareDone
from slurm.config import SlurmConfig
from slurm.frozen import code_digest, freeze
from slurm.render import ContainerMounts
from slurm.submit import next_submission

_PATTERN = re.compile(r"[*?\[{]")


def folders_read(run: LoadedRun, sources: Sequence[Path]) -> list[Path]:
    """Folders outside the run's own that its files name.

    Any text of the file that is the path of something on this machine counts (sources, tasks, classifiers, lists,
    earlier corpora, keys, waivers): an additional folder in a container does no harm.
    """
    config = run.config
    policies = policy_files(run.folder / config.governance.policy)
    key = run.keyring.own
    named = [*sources, *(path.parent for path in policies), key.parent]
    named += _named(config, run.folder)
    for path in policies:
        named += _named(read_toml(path), path.parent)
    absolute = [Path(os.path.abspath(folder)) for folder in named]
    return [path for path in dict.fromkeys(absolute) if path != Path("/") and not path.is_relative_to(run.folder)]


def files_frozen(run: LoadedRun, environment: str) -> list[Path]:
    """The run's files, policies, sourced script and own code, absolute.

    Own code that is installed is not among them.

    Raises:
        MissingInput: there is no such module.
    """
    policies = policy_files(run.folder / run.config.governance.policy)
    named = [*(run.source.files or [run.path]), *policies, *[Path(environment)] * bool(environment)]
    data = run.config.data
    functions = {f"data.filters {own.name}: filter": own.filter for own in data.filters}
    functions |= {f"source {one.name}: reader": one.reader for one in data.sources if isinstance(one, OwnSource)}
    functions |= {f"evaluation.tasks, {one.name}: task": one.task for one in run.config.evaluation.tasks if one.task}
    functions |= {"optim.function": run.config.optim.function} if run.config.optim.function else {}
    functions |= {f"train.callbacks {one.function}: function": one.function for one in run.config.train.callbacks}
    for where, dotted in functions.items():
        code = find_code(dotted, run.folder, where)
        named += code.files if code.root == run.folder.absolute() else ()
    return list(dict.fromkeys(Path(os.path.abspath(path)) for path in named))


def signing_key_id(run: LoadedRun) -> str:
    """Id of the signing key here; "" without one."""
    path = run.keyring.own
    return key_id(private_key(path, make=False).public_key()) if path.exists() else ""


def fetch_here(run: LoadedRun, runtime: Runtime, typed: str, *, requested: bool, local: bool) -> None:
    """Download remote sources on this machine, if requested.

    Otherwise print how, as nodes may have no internet.

    Raises:
        PipelineError: the download fails.
    """
    elsewhere = [source.name for source in run.config.data.sources if source.elsewhere]
    if requested:
        from assay.pipeline import corpus

        with contextlib.suppress(ShareDone):  # once all is downloaded, the next step belongs to an array
            corpus(run, replace(runtime, mode="join"))
    elif elsewhere and not local and len(list(runtime.root.glob("fetch/*/manifest.json"))) < len(elsewhere):
        get_logger(__name__).warning(
            "the first job downloads %s; if nodes have no internet, cancel, and submit with --fetch (or type here: "
            "assay data prepare %s --merge)", ", ".join(elsewhere), typed,
        )  # fmt: skip


def make_key(run: LoadedRun) -> None:
    """Make the user's signing key on first use, before any job does."""
    run.keyring.signer()


def freeze_run(run: LoadedRun, root: Path, config: SlurmConfig, *, take_edits: bool) -> None:
    """Keep copies of the submitted files.

    The jobs refuse later edits, or accept them with `take_edits`. The records of the jobs are announced first, so that
    each of their lines is signed.

    Raises:
        ManifestError: one of the records is there, and no line of the journal announces or states it.
    """
    journal = run.journal(root)
    journal.state_records([root / name for name in JOB_RECORDS])
    code = {"version": metadata.version("assay-pretrain")} | ({} if config.container else {"sha256": code_digest()})
    files = files_frozen(run, config.environment)
    freeze(root, next_submission(root), files, signing_key_id(run), code, taken=take_edits, signer=journal.line_signer)


def container_mounts(run: LoadedRun, sources: Sequence[Path], config: SlurmConfig) -> ContainerMounts:
    """Mounts of a container, and variables that locate the user's folders."""
    if not config.container:
        return ContainerMounts()
    heads = state_folder().parent  # holds the journal's head, which the gate compares
    heads.mkdir(parents=True, exist_ok=True)  # only an existing folder can be mounted
    return ContainerMounts((*folders_read(run, sources), heads.absolute()), _homes())


def _homes() -> dict[str, str]:
    """The user's own folders, for a container with another HOME."""
    return {
        "XDG_CONFIG_HOME": str(default_key_path().parent.parent.absolute()),
        "XDG_STATE_HOME": str(state_folder().parent.parent.absolute()),
    }


def _named(values: Any, folder: Path) -> Iterator[Path]:
    """Existing folders of all paths in nested values."""
    if isinstance(values, BaseModel):  # not its dump, which omits paths that enter no hash
        values = [getattr(values, name) for name in type(values).model_fields if name != "slurm"]
    if isinstance(values, dict):
        values = [*values.values()]
    if isinstance(values, list | tuple):
        for value in values:
            yield from _named(value, folder)
    elif isinstance(values, str) and values.startswith(("/", "../", "~/")):
        whole = folder / Path(_PATTERN.split(values)[0]).expanduser()
        place = whole if whole.is_dir() else whole.parent
        if place.is_dir():
            yield place
