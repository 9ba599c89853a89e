"""Handlers of `assay run`, `train`, `evaluate` and `export`.

Results go to standard output, so that they can be piped; messages and progress go to standard error.
"""

from __future__ import annotations

import argparse
import functools
import json
import os
import re
import shlex
import time
from collections.abc import Mapping
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any, Literal

from assay.cli.output import artifact, say
from assay.config import LoadedRun, load_run
from assay.run_file import is_shipped
from data_pipeline.tokens.chat_template import CHATML
from governance.config import canonical_json
from governance.energy.budget import open_budget
from governance.energy.meters import meter
from governance.errors import ConfigError, GateClosed, require_writable
from governance.files import append_line, sha256_bytes, write_json
from governance.gate.chain import require_chain, require_stated
from governance.gate.verdict import GovernanceConfig, Keyring
from governance.hooks import Hooks, no_tally
from governance.hub_client import push, require_name
from governance.lineage.attest import KeySigner, attest_with, open_journal
from governance.log import get_logger
from governance.manifest import FILE_NAME, Manifest
from governance.ray_cluster.ray_pool import ADDRESS_VARIABLE
from governance.stage import Runtime, read_artifact, root_of
from pretrain.checkpoint.averaged_weights import last_checkpoints
from pretrain.distributed.process_group import read_ranks
from pretrain.initial_weights.folder import STATEMENT
from slurm.frozen import VARIABLE as SUBMITTED_VARIABLE
from slurm.frozen import refuse_edits

Arguments = argparse.Namespace
_PROJECT = ("runs", ".git", "pyproject.toml")
"""One of these marks the folder of a project."""
_KEY = re.compile(r"[0-9a-f]{16}")
"""Name of an artifact's folder: a link with such a name poses as that artifact."""
TALLY_VARIABLE = "ASSAY_TALLY"
"""Names the file of the tally of `Hooks`; a job's script sets it."""


def keyring_of(signing_key: Path | None) -> Keyring:
    """Keys of a command without a run's file."""
    return Keyring(GovernanceConfig(signing_key="" if signing_key is None else str(signing_key.absolute())))


def read_run(arguments: Arguments) -> LoadedRun:
    """The run of a command, from its files as they are now."""
    more, overrides = getattr(arguments, "more", []), [*sweep_overrides(), *arguments.overrides]
    return load_run(arguments.config, overrides, more, needs=getattr(arguments, "needs", "all"))


def load(arguments: Arguments, command: str) -> tuple[LoadedRun, Runtime]:
    """The run and the runtime of a command.

    `command` is the command that a failed look-up suggests.
    """
    run = read_run(arguments)
    root: Path = arguments.root or default_root(arguments.config)
    _refuse_other_names(run.path, root)
    refuse_edited(run, root.absolute())
    journal = run.journal(root.absolute())
    announcing = open_journal(run.keyring, root.absolute())
    task = getattr(arguments, "task", None)
    ledger, tally = root.absolute() / "energy.jsonl", os.environ.get(TALLY_VARIABLE)
    engine: Literal["duckdb", "daft", "ray"] = getattr(arguments, "engine", "duckdb")
    _refuse_unmeasured(run, engine)
    runtime = Runtime(
        root=root.absolute(),
        workers=arguments.data_workers,
        command=command_line(arguments, command),
        worker=task or (0, 1),
        mode="share" if task and not arguments.wait else "join" if getattr(arguments, "merge", False) else "all",
        engine=engine,
        hooks=Hooks(
            # The meter's thread may announce, so it has a journal of its own.
            meter=meter(
                run.config.energy,
                ledger,
                functools.partial(announcing.state_ledger, signed=True),
                announcing.line_signer,
            ),
            budget=open_budget(run.policy.energy_budget, ledger, str(run.folder / run.config.governance.policy)),
            attest=attest_with(journal, run.keyring, root.absolute()),
            begin=journal.state_begin,
            line_signer=journal.line_signer,
            head=journal.head,
            signer=KeySigner(run.keyring),
            tally=functools.partial(append_line, Path(tally)) if tally else no_tally,
        ),
    )
    return run, runtime


def _refuse_other_names(*paths: Path) -> None:
    """Refuse paths that Parquet and JSON cannot hold."""
    for path in map(Path.absolute, paths):
        if os.fsencode(path) != str(path).encode("utf-8", "replace"):
            raise ConfigError(
                f"{str(path)!r}: its name, or that of a folder around it, is not UTF-8. Rename it, or name another"
            )


def _refuse_unmeasured(run: LoadedRun, engine: str) -> None:
    """Refuse a Ray cluster, which has no meters, under an energy budget."""
    budget = run.policy.energy_budget
    elsewhere = engine == "ray" or (engine == "daft" and os.environ.get(ADDRESS_VARIABLE))
    if elsewhere and budget is not None and budget.scope == "root" and budget.unknown == "refuse":
        raise ConfigError(
            f"--engine {engine}: the policy's energy_budget bounds data stages, and no meter runs on the nodes of a "
            "Ray cluster. Use --task on each node, or set energy_budget.scope = 'training' or "
            "energy_budget.unknown = 'allow'"
        )


def load_corpus(arguments: Arguments) -> tuple[LoadedRun, Runtime, dict[str, Manifest]]:
    """The run, the runtime and the artifacts of a prepared corpus.

    Raises:
        MissingInput: a stage is missing; names the command that makes it.
    """
    from assay.pipeline import corpus

    loaded, runtime = load(arguments, "data prepare")
    return loaded, runtime, corpus(loaded, replace(runtime, make=False))


def command_line(arguments: Arguments, command: str) -> str:
    """Another command on the same files, root and overrides."""
    root = ["--root", str(arguments.root)] if arguments.root else []
    given = [word for one in getattr(arguments, "overrides", []) for word in ("--set", one)]
    return shlex.join(
        ["assay", *command.split(), *map(str, (arguments.config, *getattr(arguments, "more", []))), *root, *given]
    )


def sweep_overrides() -> list[str]:
    """Overrides of a W&B sweep's run: the agent's parameters, named as fields.

    Raises:
        ConfigError: the agent's file cannot be read.
    """
    path = os.environ.get("WANDB_SWEEP_PARAM_PATH")
    if not path or not os.environ.get("WANDB_SWEEP_ID"):
        return []
    import yaml

    try:
        values = yaml.safe_load(Path(path).read_text(encoding="utf-8"))
        found = {name: entry["value"] for name, entry in values.items() if isinstance(entry, dict)}
        return [f"{name}={json.dumps(value)}" for name, value in found.items()]
    except (OSError, ValueError, KeyError, TypeError, AttributeError, yaml.YAMLError) as error:
        raise ConfigError(f"WANDB_SWEEP_PARAM_PATH = {path}: is not a sweep's parameter file: {error}") from error


def default_root(config: Path) -> Path:
    """Root of a run without `--root`.

    It is `runs/<name>` in the nearest folder around CONFIG that has `runs`, `.git` or `pyproject.toml`, else next to
    CONFIG. So it is the same from every folder, except from one that has a `runs/<name>` already: that one wins, also
    if it belongs to another project. The shipped configurations, which are copied nowhere, run here.
    """
    here = Path("runs") / config.stem
    folder = config.absolute().parent
    if here.exists() or is_shipped(config):
        return here
    marked = (above for above in (folder, *folder.parents) if any((above / name).exists() for name in _PROJECT))
    return next(marked, folder) / here


def refuse_edited(run: LoadedRun, root: Path) -> None:
    """Refuse, in a job of a cluster, what differs from the submission.

    Raises:
        ConfigError: a file, the signing key or the program differs.
    """
    if os.environ.get(SUBMITTED_VARIABLE) != str(root):
        return
    from assay.slurm_folders import signing_key_id

    refuse_edits(root, signing_key_id(run), first=read_ranks().first, signer=run.journal(root).record_signer)


def argv_of(arguments: Arguments, runtime: Runtime) -> list[str]:
    """Command-line arguments that give this run's configuration to a child process."""
    overrides = [word for override in arguments.overrides for word in ("--set", override)]
    more = [word for path in arguments.more for word in ("--with", str(path.absolute()))]
    return [str(arguments.config.absolute()), *more, "--root", str(runtime.root), *overrides]


def run(arguments: Arguments) -> None:
    """Run everything and print the run's card."""
    from assay.pipeline import run_all
    from assay.run_card import card

    begun = time.monotonic()
    loaded, runtime = load(arguments, "run")
    page = run_all(loaded, runtime, arguments.nproc, argv_of(arguments, runtime))
    seconds = time.monotonic() - begun
    summary = json.loads(page.with_name("report.json").read_bytes())["summary"]
    say("\n".join(card(summary, page, seconds)), report=page, seconds=seconds, **summary)


def train(arguments: Arguments) -> None:
    """Train on a prepared corpus that has passed the gate."""
    from assay.pipeline import corpus, training

    if arguments.dry_run:
        arguments.needs = "model"
    loaded, runtime = load(arguments, "data prepare")
    if arguments.dry_run:
        from assay.dry_run import dry_run, planned, ranks_of

        ranks = ranks_of(arguments.ranks, arguments.nproc)
        place = planned(loaded.config.engine, ranks, arguments.device, arguments.gpu_memory)
        for line in dry_run(loaded, runtime, ranks, place):  # a refusal comes after what it refuses
            say(line, plan=[line])
        return
    if arguments.ranks:
        raise ConfigError("--ranks requires --dry-run; a start has as many ranks as --nproc, torchrun or srun starts")
    if arguments.device or arguments.gpu_memory:
        raise ConfigError("--device and --gpu-memory require --dry-run; a start computes on engine.device")
    artifacts = corpus(loaded, replace(runtime, make=False))
    manifest = training(loaded, artifacts, runtime, arguments.nproc, argv_of(arguments, runtime))
    if read_ranks().first:  # under torchrun or srun only the first rank prints
        say(f"train {manifest.digest[:16]}  {runtime.root / manifest.folder}", **artifact(manifest, runtime.root))


def teacher_logits(arguments: Arguments) -> None:
    """Draw from a teacher's distributions for the run's distillation."""
    from assay.corpus_gate import pass_gate
    from assay.teacher_draws import teacher_logits as make

    loaded, runtime, artifacts = load_corpus(arguments)
    pass_gate(loaded, artifacts, runtime)
    made = make(loaded, artifacts, runtime)
    if made is None:
        raise ConfigError(
            f"{arguments.config}: does not train on draws. Set logits = 'sampled' in [train.distillation] and name the "
            "teacher there"
        )
    stats = made.stats
    say(
        f"teacher_logits {made.digest[:16]}  {runtime.root / made.folder}: {stats['samples']} draws for each of "
        f"{stats['targets']:,} tokens, {stats['bytes_per_token']} bytes per token",
        **artifact(made, runtime.root),
        **stats,
    )


def checkpoint_of(
    arguments: Arguments, loaded: LoadedRun, artifacts: Mapping[str, Manifest], runtime: Runtime
) -> tuple[Path, dict[str, Any]]:
    """Folder of the named checkpoint ("last": the final one), and its origin.

    Raises:
        GateClosed: the journal of its root, this one or another, does not state it, or its training, as it is; its
            folder holds another one; or its origin is not verified, and the policy demands it.
    """
    from assay.pipeline import training
    from assay.weights_origin import checkpoint_origin, refuse_unverified

    checkpoint: Path = arguments.checkpoint
    journal = loaded.journal(runtime.root)
    if str(checkpoint) == "last" and not checkpoint.exists():
        look = replace(runtime, make=False, command=command_line(arguments, "train"))
        ended = training(loaded, artifacts, look)
        require_chain([ended], runtime.root, journal)
        checkpoint = runtime.root / str(ended.stats["checkpoint"]["path"])
    folder, found = checkpoint.parent if checkpoint.name == FILE_NAME else checkpoint, read_artifact(checkpoint)
    written, read = Path(os.path.abspath(folder)), folder.resolve()  # they differ where a link is followed
    posing = _KEY.fullmatch(written.name) is not None and written.name != read.name
    if posing or read.parts[-2:] != Path(found.folder).parts:
        raise GateClosed(
            f"{folder}: holds the manifest of {found.folder}, so weights other than those named would be read. Restore "
            "it; a copy must keep its folder's name, below a folder of its stage's name"
        )
    home = root_of(checkpoint)
    if runtime.root.resolve() in (home, written.parents[1].resolve()):  # also where a link leads out of the root
        require_stated([found], runtime.root, journal)
        home = runtime.root
    origin = checkpoint_origin(loaded, found, home, runtime.root)  # a copy elsewhere has no statement here
    refuse_unverified(loaded, origin)
    if not origin["verified"]:
        get_logger(__name__).warning("the origin of %s is not verified: %s", checkpoint, origin["why"])
    return checkpoint, origin


def averaged_with(newest: Manifest, arguments: Arguments, loaded: LoadedRun, root: Path) -> list[Manifest]:
    """The other checkpoints that `--average` names, newest first.

    Raises:
        ConfigError: fewer are kept.
        CheckpointError: one is damaged.
        GateClosed: the journal does not state one as it is.
    """
    if arguments.average == 1:
        return []
    others = last_checkpoints(newest, arguments.average, root)[1:]
    require_stated(others, root, loaded.journal(root))
    return others


def evaluate(arguments: Arguments) -> None:
    """Measure a checkpoint's validation loss and task scores."""
    from assay.checkpoint_evaluation import evaluation
    from assay.training_recipe import training_rows
    from pretrain.evaluation.evaluation_table import table

    loaded, runtime, artifacts = load_corpus(arguments)
    require_writable(runtime.root)  # its journal states the result
    checkpoint, origin = checkpoint_of(arguments, loaded, artifacts, runtime)
    evaluated, tokens = read_artifact(checkpoint), training_rows(artifacts)
    others = averaged_with(evaluated, arguments, loaded, runtime.root)
    found, tasks = evaluation(loaded, artifacts, checkpoint, runtime, others)
    values = {**asdict(found), "tasks": tasks}
    if others:
        values["averaged"] = [one.digest for one in others]
    say("\n".join(table(found, tasks, loaded.config.model.num_labels)), **values)
    subject = {f"evaluation/{evaluated.digest[:16]}": sha256_bytes(canonical_json(values))}
    made_from = [*(one.as_input() for one in (evaluated, *others)), tokens.as_input()]
    loaded.journal(runtime.root).state("evaluation", subject, made_from, **values, origin=origin)


def export(arguments: Arguments) -> None:
    """Write a checkpoint as a Hugging Face folder."""
    from assay.classifier_runs import labels_of
    from assay.corpus_gate import require_corpus
    from assay.training_recipe import training_rows
    from pretrain.checkpoint.format import identity_of
    from pretrain.export.huggingface import ExportFacts, use_of
    from pretrain.export.huggingface import export as write
    from pretrain.export.peft_folder import export_adapter

    _refuse_export(arguments)
    loaded, runtime, artifacts = load_corpus(arguments)
    require_corpus(loaded, artifacts, runtime)  # the tokenizer is behind it
    checkpoint, origin = checkpoint_of(arguments, loaded, artifacts, runtime)
    sources = [(source.name, source.licence, source.url) for source in loaded.config.data.sources]
    template = CHATML if loaded.config.data.encode.loss_on == "answers" else ""
    exported = read_artifact(checkpoint)
    if exported.inputs[0].digest != training_rows(artifacts).digest:
        get_logger(__name__).warning(
            "%s was trained on other token shards than those of %s, so the folder has neither the names and licences "
            "of sources nor a chat template; give the run's file of its training, with the version of Assay that made "
            "its corpus", checkpoint, arguments.config,
        )  # fmt: skip
        sources, template = [], ""
    labels = labels_of(loaded, artifacts, exported) if identity_of(exported).recipe.model.num_labels else ()
    others = averaged_with(exported, arguments, loaded, runtime.root)
    facts = ExportFacts(sources, "" if origin["verified"] else str(origin["why"]), template, labels, others)
    if arguments.adapter:
        manifest, digests = export_adapter(checkpoint, arguments.target, runtime.root, facts.unverified)
    else:
        manifest, digests = write(
            checkpoint, artifacts["tokenizer"], arguments.target, runtime.root, dtype=arguments.dtype, facts=facts
        )
    subjects = {f"{arguments.target.name}/{name}": digest for name, digest in sorted(digests.items())}
    made_from = [*(one.as_input() for one in (manifest, *others)), artifacts["tokenizer"].as_input()]
    journal = loaded.journal(runtime.root)
    journal.state("export", subjects, made_from, origin=origin)
    # With the weights, so that a run in another root knows what is behind them.
    write_json(arguments.target / STATEMENT, journal.sign_apart("export", subjects, made_from, origin=origin))
    form = "adapter in PEFT's format" if arguments.adapter else "Hugging Face folder"
    say(f"{arguments.target}: checkpoint {manifest.digest[:16]} as {form}", folder=arguments.target)
    if arguments.adapter:
        line, where = f'peft.PeftModel.from_pretrained(base, "{arguments.target}")', "Python"
    else:
        line, where = use_of(arguments.target)
    say(f"next: {line} in {where}; {arguments.target / 'README.md'} is its card", next=line)
    if arguments.push:
        commit = _push_export(arguments, manifest)
        pushed = {f"hub/{arguments.push}/{Path(name).name}": digest for name, digest in subjects.items()}
        loaded.journal(runtime.root).state("push", pushed, made_from, commit=commit)
        say(f"{arguments.push}: {commit}", push=arguments.push, commit=commit)


def _refuse_export(arguments: Arguments) -> None:
    """Refuse options that exclude each other, and a malformed repository name."""
    if arguments.adapter and arguments.dtype != "fp32":
        raise ConfigError(f"--adapter is written in fp32, not --dtype {arguments.dtype}; leave one of them out")
    if arguments.adapter and arguments.average > 1:
        raise ConfigError(
            "--adapter: the mean of adapters has a higher rank than each of them; leave out --adapter or --average"
        )
    if arguments.push:
        require_name(arguments.push)


def _push_export(arguments: Arguments, checkpoint: Manifest) -> str:
    """Upload the exported folder; return the commit."""
    from pretrain.export.huggingface import REPLACED

    message = f"Checkpoint {checkpoint.digest[:16]}, step {checkpoint.config['step']}"
    private = "" if arguments.public else " --private"  # without it, hf upload creates a public repository
    replaced = () if arguments.adapter else REPLACED
    deleted = "".join(f" --delete {shlex.quote(pattern)}" for pattern in replaced)
    sent = f"hf upload {arguments.push} {shlex.quote(str(arguments.target))}{private}{deleted}"
    again = f"{arguments.target} is complete; send it with: {sent}"
    return push(arguments.target, arguments.push, message, again=again, public=arguments.public, replaces=replaced)
