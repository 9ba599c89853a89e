"""Plan of a replay: affected steps, first checkpoint, cost.

    read        steps of the run that read one of the documents: a function of seed and settings, not remembered
    clean       the last checkpoint before the first of them that is kept, of the run or of those that it continues
    replay      the steps after it, once more; without such a checkpoint all of them

Nothing is made or changed. The shards are hashed first, as a training does: a plan from other ones would be wrong.
Price: that, and as `assay/impact.py`, once for each request.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from assay.config import LoadedRun
from assay.corpus_gate import require_corpus
from assay.impact import Impact, impact
from assay.planning.cluster import Cluster
from assay.training_recipe import pinned, training_folder, training_rows
from governance.energy.band import UNKNOWN, Band
from governance.errors import ConfigError, MissingInput
from governance.lineage.lineage_graph import describe_node, read_graph
from governance.manifest import KEY_LENGTH, Manifest, read_manifest
from governance.replay.replay_cost import ReplayCost, replay_cost, spent_on
from governance.stage import Runtime
from pretrain.checkpoint.format import STAGE, Parent
from pretrain.checkpoint.load import parent_of
from pretrain.config.training import TrainRecipe
from pretrain.data.dataset import holds_validation, open_rows
from pretrain.data.removed_documents import places_in
from pretrain.data.sampler import sampler_of


@dataclass(frozen=True)
class AffectedCheckpoint:
    """A checkpoint that read a requested document."""

    path: str
    digest: str
    step: int
    first_step: int
    times: int
    kept: bool
    """True while it is in the root."""


@dataclass(frozen=True)
class TrainedPart:
    """A training whose steps the run consists of."""

    root: Path
    training: str
    """ "train/<key>"."""
    until: int | None
    """Its last step that counts; None: the last one that it made."""


@dataclass(frozen=True)
class ReplayPlan:
    """Everything that a takedown affects, and a replay without the documents."""

    root: Path
    training: str
    """The run's, "train/<key>"."""
    documents: tuple[str, ...]
    """Identities of the documents that its corpus holds, hexadecimal."""
    fates: tuple[str, ...]
    """Requested ones that it does not hold, with the filter that removed each."""
    reads: tuple[int, ...]
    """Steps that read a row of one; one entry for each row."""
    last_step: int
    """Steps that the run has made."""
    checkpoints: tuple[AffectedCheckpoint, ...]
    clean: Parent | None
    """Checkpoint to go on from; None: no clean one is kept, so the replay begins at step 1."""
    children: tuple[str, ...]
    """Descendants of affected checkpoints, in words."""
    cost: ReplayCost
    ranks: int | None
    usd: Band
    """For the devices' hours, at the prices of a cluster file."""
    first_inputs: str
    """Artifacts besides its tokens that the first of the run's parents began with; empty: none, or it has no parent."""

    @property
    def first_step(self) -> int:
        """The first step that read one of the documents; 0: none did."""
        return min(self.reads, default=0)

    @property
    def clean_step(self) -> int:
        """Steps that need no replay."""
        return self.clean.step if self.clean is not None else 0

    def facts(self) -> dict[str, Any]:
        """The plan as JSON."""
        return {
            "training": self.training,
            "documents": self.documents,
            "fates": self.fates,
            "steps_read": self.reads,
            "first_step": self.first_step,
            "last_step": self.last_step,
            "checkpoints": [vars(item) for item in self.checkpoints],
            "children": self.children,
            "clean": {"path": self.clean.manifest.path, "step": self.clean.step} if self.clean is not None else None,
            "steps_to_replay": self.last_step - self.clean_step if self.reads else 0,
            "hours": self.cost.hours,
            "nodes": self.cost.nodes,
            "ranks": self.ranks,
            "kwh": self.cost.kwh._asdict(),
            "methods": self.cost.methods,
            "usd": self.usd._asdict(),
        }


def replay_plan(
    run: LoadedRun,
    artifacts: Mapping[str, Manifest],
    runtime: Runtime,
    requests: Sequence[str],
    cluster: Cluster | None,
) -> ReplayPlan:
    """Plan the replay of a run without the documents of some requests.

    Args:
        run: the run, as its file states it.
        artifacts: of its corpus.
        runtime: where.
        requests: ids, URLs, shards or code repositories.
        cluster: has the price of a device's hour.

    Raises:
        MissingInput: a request names nothing, or the run has made no checkpoint.
        ConfigError: its corpus holds none of the documents, or the run removes them already.
        GateClosed: the journal was cut, or the token shards are not as it states.
        ManifestError: the journal was altered, or a shard is torn.
    """
    root, tokens, recipe = runtime.root, training_rows(artifacts), pinned(run)
    run.journal(root).verified()
    require_corpus(run, artifacts, runtime, "train", "validation")
    training = training_folder(run, artifacts, runtime).relative_to(root).as_posix()
    parts = list(_parts(recipe, runtime, training))
    found = [impact(request, [part.root for part in parts]) for request in requests]
    documents, fates = _held(requests, found, tokens, root, recipe)
    steps = {step for step, _ in checkpoints_of(TrainedPart(root, training, None), kept=False)}
    if not steps:
        raise MissingInput(f"{root / training}: has made no checkpoint, so there is nothing to replay. Give its --root")
    rows = open_rows(tokens, "train", root, recipe.train.sequence_length)
    reads = sampler_of(rows, recipe.train).steps_that_read(rows.holding(documents), max(steps))
    clean = _clean(parts, min(reads)) if reads else None
    after = clean.step if clean is not None else 0
    cost = replay_cost(
        piece for part in parts for piece in spent_on(part.root, part.training, after, part.until) if reads
    )
    ranks = _ranks(root, training)
    return ReplayPlan(
        root=root,
        training=training,
        documents=tuple(sorted(identity.hex() for identity in documents)),
        fates=fates,
        reads=tuple(reads),
        last_step=max(steps),
        checkpoints=tuple(_affected(found)),
        clean=clean,
        children=tuple(dict.fromkeys(describe_node(node) for one in found for _, node in one.children)),
        cost=cost,
        ranks=ranks,
        usd=_price(cluster, cost.hours, ranks),
        first_inputs=_first_inputs(parent_of(recipe.train, root)),
    )


def _held(
    requests: Sequence[str], found: Sequence[Impact], tokens: Manifest, root: Path, recipe: TrainRecipe
) -> tuple[frozenset[bytes], tuple[str, ...]]:
    """Identities to remove from the rows, and fates of the others."""
    roles = ["train", *["validation"] * holds_validation(tokens, root)]
    shards = [shard for role in roles for shard in open_rows(tokens, role, root, recipe.train.sequence_length).shards]
    wanted = [frozenset(map(bytes.fromhex, one.identities)) for one in found]
    every = frozenset[bytes]().union(*wanted)
    held = frozenset(shard.identities[place].tobytes() for shard in shards for place in places_in(shard, every))
    fates = tuple(
        fate
        for request, identities, one in zip(requests, wanted, found, strict=True)
        if not identities & held
        for fate in one.fates or (f"{request}: is not in this run's corpus",)
    )
    removed = frozenset(map(bytes.fromhex, recipe.train.removed_documents))
    if not held - removed:
        why = "\n  ".join(fates) or "train.removed_documents of the run's file names them already"
        raise ConfigError(
            f"takedown: the run trains on none of these documents:\n  {why}\n  There is nothing to replay."
        )
    return held - removed, fates


def _parts(recipe: TrainRecipe, runtime: Runtime, training: str) -> Iterator[TrainedPart]:
    """The run's training, then those that it continues, nearest first."""
    yield TrainedPart(runtime.root, training, None)
    parent = parent_of(recipe.train, runtime.root)
    while parent is not None:
        key = str(parent.manifest.config["train_key"])[:KEY_LENGTH]
        home = runtime.root if parent.root.resolve() == runtime.root.resolve() else parent.root
        yield TrainedPart(home, f"train/{key}", parent.step)
        parent = _before(parent)


def _before(parent: Parent) -> Parent | None:
    """The checkpoint that a parent's own training continued, if it is there."""
    if "continued" not in parent.manifest.stats:
        return None
    with contextlib.suppress(MissingInput):
        return Parent(read_manifest(parent.root / parent.manifest.inputs[1].path), parent.root)
    return None


def _first_inputs(parent: Parent | None) -> str:
    while parent is not None and (before := _before(parent)) is not None:
        parent = before
    return ", ".join(item.path for item in parent.manifest.inputs[1:]) if parent is not None else ""


def checkpoints_of(part: TrainedPart, kept: bool = True) -> Iterator[tuple[int, Manifest | None]]:
    """Steps and manifests of a training's checkpoints.

    Those that are not `kept` any more may have no manifest.
    """
    for node in read_graph(part.root).nodes.values():
        if node.stage != STAGE or not str(node.config.get("train_key", "")).startswith(Path(part.training).name):
            continue
        step, whole = int(node.config["step"]), node.manifest
        if part.until is not None and step > part.until:
            continue
        there = whole is not None and all((part.root / output.path).exists() for output in whole.outputs)
        if there or not kept:
            yield step, whole


def _clean(parts: Iterable[TrainedPart], first_step: int) -> Parent | None:
    """The last kept checkpoint before a step that a training can continue."""
    found = [
        Parent(manifest, part.root)
        for part in parts
        for step, manifest in checkpoints_of(part)
        if manifest is not None and step < first_step and "base" not in manifest.stats
    ]
    return max(found, key=lambda parent: parent.step, default=None)


def _affected(found: Iterable[Impact]) -> list[AffectedCheckpoint]:
    """Checkpoints that saw one of the documents, each once."""
    seen: dict[str, AffectedCheckpoint] = {}
    for item in (item for one in found for item in one.checkpoints if item.times):
        node, before = item.checkpoint, seen.get(item.checkpoint.digest)
        seen[node.digest] = AffectedCheckpoint(
            path=(item.root / node.path).parent.as_posix(),
            digest=node.digest,
            step=item.step,
            first_step=min(item.first_step, before.first_step) if before else item.first_step,
            times=item.times + (before.times if before else 0),
            kept=node.manifest is not None,
        )
    return sorted(seen.values(), key=lambda item: (item.step, item.digest))


def last_checkpoint(root: Path, training: str) -> Manifest | None:
    """The newest kept checkpoint of a training."""
    found = checkpoints_of(TrainedPart(root, training, None))
    return max(found, key=lambda item: item[0], default=(0, None))[1]


def _ranks(root: Path, training: str) -> int | None:
    last = last_checkpoint(root, training)
    return None if last is None else int(last.run["execution"]["world_size"])


def _price(cluster: Cluster | None, hours: float | None, ranks: int | None) -> Band:
    if cluster is None or hours is None or ranks is None:
        return UNKNOWN
    return cluster.band("price_hour").each(hours * ranks, "*")


def explain(plan: ReplayPlan) -> str:
    """The plan as a table, for a terminal."""
    kept = sum(item.kept for item in plan.checkpoints)
    rows = [
        ("documents", f"{len(plan.documents)}: {', '.join(plan.documents[:3])}{' ...' * (len(plan.documents) > 3)}"),
        *(("not in the corpus", fate) for fate in plan.fates),
        ("training", f"{plan.training}, {plan.last_step} steps"),
        ("affected checkpoints", f"{len(plan.checkpoints)}, {kept} of them kept"),
        *(("", f"{item.path}  step {item.step}, read {item.times} time(s)") for item in plan.checkpoints if item.kept),
        ("descendants of these", f"{len(plan.children)}"),
        *(("", child) for child in plan.children),
    ]
    if not plan.reads:
        rows.append(("replay", "none: no step of this training read them"))
    else:
        clean = plan.clean
        rows += [
            ("first affected step", f"{plan.first_step} ({len(set(plan.reads))} step(s) read them)"),
            (
                "last clean checkpoint",
                f"step {clean.step}, {clean.root / clean.manifest.folder}" if clean else "none is kept: from step 1",
            ),
            ("steps to replay", f"{plan.last_step - plan.clean_step} of {plan.last_step}"),
            ("hours", "unknown: the ledger has none of these steps" if plan.cost.hours is None
             else f"{plan.cost.hours:.4g} on {plan.ranks} rank(s), as these steps took"),
            ("kWh", _band(plan.cost.kwh)),
            ("US dollars", _band(plan.usd) if plan.usd.value is not None else "unknown: give --cluster NAME|FILE"),
        ]  # fmt: skip
    return "\n".join(f"{name:<22}{value}" for name, value in rows)


def _band(band: Band) -> str:
    if band.value is None:
        return "unknown: no meter measured these steps"
    low, high = ("?" if bound is None else f"{bound:.4g}" for bound in (band.low, band.high))
    return f"{band.value:.4g} [{low}, {high}]"
