"""Replay of a run without some documents: its settings, and its certificate."""

from __future__ import annotations

import contextlib
import json
from pathlib import Path
from typing import Any

from assay.config import LoadedRun
from assay.replay.replay_plan import ReplayPlan, last_checkpoint
from governance.errors import ConfigError, ManifestError, MissingInput
from governance.files import sha256_bytes, write_text
from governance.gate.chain import require_stated
from governance.manifest import FILE_NAME, Input, Manifest, read_manifest
from governance.replay.replay_statement import state_replay, weights_of
from governance.stage import Runtime
from governance.verified_files import intact
from pretrain.checkpoint.format import read_state


def write_settings(run: LoadedRun, plan: ReplayPlan) -> tuple[Path, frozenset[str]]:
    """Write the settings of a replay (`--with`) next to the run's file.

    The same plan gives the same file, so that the same command resumes a replay. Returned with the names that it sets.

    Raises:
        ConfigError: no step read the documents; or no clean checkpoint is kept, and the run's first parent began with
            more than its tokens, which its settings here do not name.
    """
    if not plan.reads:
        raise ConfigError("takedown --execute: no step of this training read the documents: there is nothing to replay")
    train, clean = run.config.train, plan.clean
    settings: dict[str, Any] = {"removed_documents": sorted({*train.removed_documents, *plan.documents})}
    if clean is not None:
        settings["continue_from"] = _named(clean.root, clean.manifest, plan.root)
        settings |= {"initial_weights": ""} if train.initial_weights else {}
    elif train.continue_from:
        if plan.first_inputs:
            raise ConfigError(
                f"takedown --execute: no clean checkpoint is kept, and the first parent of this run began with "
                f"{plan.first_inputs}. Replay that parent from its own file, then this run from its new checkpoint"
            )
        settings["continue_from"] = ""
    lines = [f"{name} = {json.dumps(value)}" for name, value in settings.items()]
    text = "\n".join(
        [f"# {plan.training} without {len(plan.documents)} document(s): its replay", "[train]", *lines, ""]
    )
    path = run.folder / f"{run.path.stem}-takedown-{sha256_bytes(text.encode())[:8]}.toml"
    write_text(path, text)
    return path, frozenset(f"train.{name}" for name in settings)


def _named(home: Path, manifest: Manifest, root: Path) -> str:
    return manifest.folder if home.resolve() == root.resolve() else str((home / manifest.folder).absolute())


def certify(child: LoadedRun, plan: ReplayPlan, made: Manifest, runtime: Runtime) -> dict[str, Any]:
    """State the finished replay in the journal; its facts.

    Raises:
        MissingInput: the last checkpoint of the replay is gone.
        GateClosed: a training or a checkpoint that the facts are of is not as the journal states it.
        AlteredFile: the losses of a training were altered.
    """
    root, last, clean = runtime.root, made.stats["checkpoint"], plan.clean
    checkpoint, old = read_manifest(root / last["path"]), _finished(plan, root)
    known = [made, checkpoint, *old, *([clean.manifest] if clean is not None and clean.root == root else [])]
    require_stated(known, root, child.journal(root))
    facts = {
        "documents": list(plan.documents),
        "training": plan.training,
        "steps": plan.last_step,
        "clean": {**_place(clean.manifest), "step": clean.step} if clean is not None else None,
        "first_step": plan.first_step,
        "recomputed": _recomputed(plan, made, old, root),
        "replayed": _place(made),
        "checkpoint": _place(checkpoint),
        "weights": weights_of(checkpoint),
    }
    before: list[Input] = [made.as_input(), *([clean.manifest.as_input()] if clean is not None else [])]
    before += [manifest.as_input() for manifest in old]
    state_replay(child.journal(root), facts, before)
    return facts


def _place(manifest: Manifest) -> dict[str, str]:
    return {"path": manifest.path, "digest": manifest.digest}


def _finished(plan: ReplayPlan, root: Path) -> list[Manifest]:
    """The training that was repeated, unless it never ended."""
    with contextlib.suppress(MissingInput, ManifestError):
        return [read_manifest(root / plan.training / FILE_NAME)]
    return []


def _recomputed(plan: ReplayPlan, made: Manifest, old: list[Manifest], root: Path) -> dict[str, int]:
    """Steps that both trainings made alike, and those with equal losses.

    Compares the steps from the clean checkpoint to the first affected one.
    """
    between = range(plan.clean_step, plan.first_step - 1)
    new, before = _losses_of(made, root), _losses(plan, old, root)
    known = [step for step in between if step < min(len(new), len(before))]
    return {"steps": len(known), "equal": sum(new[step] == before[step] for step in known)}


def _losses_of(made: Manifest, root: Path) -> list[float | None]:
    with intact(made.named("losses.json"), root) as path:
        return list(json.loads(path.read_bytes())["losses"])


def _losses(plan: ReplayPlan, old: list[Manifest], root: Path) -> list[float | None]:
    """Losses of the old training, as far as they are kept."""
    if old and (root / old[0].folder / "losses.json").exists():
        return _losses_of(old[0], root)
    last = last_checkpoint(root, plan.training)
    return list(read_state(last, root).losses) if last is not None else []


def certificate_words(facts: dict[str, Any]) -> str:
    """A certificate in lines, for a terminal."""
    again, clean = facts["recomputed"], facts["clean"]
    begun = f"from the checkpoint of step {clean['step']}" if clean else "from step 1"
    return "\n".join(
        [
            f"replayed: {facts['training']} {begun} as {Path(facts['replayed']['path']).parent}, without "
            f"{len(facts['documents'])} document(s), which step {facts['first_step']} was the first to read",
            f"steps before that which were made again: {again['steps']}, {again['equal']} of them with the same loss",
            f"new weights: {', '.join(f'{name} {digest[:16]}' for name, digest in facts['weights'].items())}",
        ]
    )
