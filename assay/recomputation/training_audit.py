"""Audit of a training, by the repetition of drawn stretches.

    checkpoints    those that are kept, whose files are as their manifests and the journal state them
    draw           stated in the journal before anything is repeated (`audit_statement.py`)
    repeated       each drawn stretch, by the trainer itself, from its first checkpoint and the corpus
    compared       digests of weights and moments. Where the arithmetic was another (processor, torch, threads, ranks):
                   differences, against `_MARGIN` times those that a nudge of the first weights leads to

The same command continues a draw that was not finished. Price: the share of the training's steps; where bits differ
for another arithmetic, each such stretch twice.
"""

from __future__ import annotations

import contextlib
import secrets
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from assay.config import LoadedRun
from assay.corpus_gate import require_corpus
from assay.recomputation.repeated_stretch import (
    NUDGE,
    Differences,
    Stretch,
    differences,
    learned_alike,
    other_arithmetic,
    repeat,
)
from assay.replay.replay_plan import TrainedPart, checkpoints_of
from assay.training_recipe import pinned, training_folder, training_rows
from governance.config import Section
from governance.errors import ConfigError, ManifestError, MissingInput
from governance.files import make_private_folder, remove_tree, write_json
from governance.gate.chain import require_stated
from governance.log import get_logger, progress
from governance.manifest import Manifest, describe, verify
from governance.recomputation.audit_draw import amount_of, chance_of_finding, drawn, public_value, surely_found
from governance.recomputation.audit_statement import FALSIFIED, draws, state_draw
from governance.stage import Made, Recipe, Runtime, run_stage
from pretrain.checkpoint.load import parent_of

VERSION = 1
EQUAL, WITHIN = "equal", "within the bound"
_MARGIN = 8.0
"""Twice the largest measured ratio of differences between instruction sets to those of a nudge, 3.6, and more."""


class TrainingAuditConfig(Section):
    """A draw: what decides an audit."""

    training: str
    """ "train/<key>"."""
    value: str
    """Random value of the draw."""
    share: float
    """Share of the stretches."""


def audit_training(
    run: LoadedRun, artifacts: Mapping[str, Manifest], runtime: Runtime, share: float, beacon: str = ""
) -> tuple[Manifest, dict[str, Any]]:
    """Draw, repeat and compare; the artifact, and its facts.

    Args:
        run: the run, as its file states it.
        artifacts: of its corpus.
        runtime: where.
        share: of the stretches, above 0 and at most 1.
        beacon: a public value that was not known when the checkpoints were stated; "": a nonce is generated here.

    Raises:
        ConfigError: the share, or the settings, do not fit.
        MissingInput: no two checkpoints are kept, or the corpus is gone.
        ManifestError: the journal or a file of a checkpoint was altered.
        StorageError: another account can write to the folder of the repetitions.
        GateClosed: lines of the journal are gone, a checkpoint or the corpus is not as it was stated.
    """
    root, journal = runtime.root, run.journal(runtime.root)
    if not 0 < share <= 1:
        raise ConfigError(f"--share {share:g}: give a share of the stretches above 0 and at most 1, such as 0.01")
    journal.verified()
    require_corpus(run, artifacts, runtime, "train", "validation")
    training = training_folder(run, artifacts, runtime).relative_to(root).as_posix()
    stretches = _stretches(run, runtime, training, share)
    require_stated([one.end for one in stretches], root, journal)
    inputs = [training_rows(artifacts).as_input(), *(one.end.as_input() for one in stretches)]
    draw = _draw(run, runtime, training, stretches, share, beacon)
    scratch = root.parent / f"{root.name}-training-audit" / draw["value"][:16]

    def make(folder: Path) -> Made:
        chosen = [stretches[number] for number in drawn(draw["value"], len(stretches), draw["amount"])]
        repeated = []
        with progress("audit-training", sum(one.last_step - one.after for one in chosen), "steps") as advance:
            for stretch in chosen:
                repeated.append(_repeat(run, artifacts, root, stretch, scratch))
                advance(stretch.last_step - stretch.after)
        facts = {**draw, "checkpoints": len(stretches), **_odds(draw, len(stretches)), "repeated": repeated}
        facts["draws"] = len(draws(journal.verified(), training))
        facts["verdict"] = _verdict([one["result"] for one in repeated])
        write_json(folder / "audit.json", facts)
        remove_tree(scratch)
        with contextlib.suppress(OSError):  # another audit may use it; an empty one would refuse other accounts
            scratch.parent.rmdir()
        return Made([describe(folder / "audit.json", root)], facts)

    config = TrainingAuditConfig(training=training, value=draw["value"], share=share)
    made = run_stage(Recipe("training_audit", VERSION, config), inputs, runtime, make)
    return made, dict(made.stats)


def _stretches(run: LoadedRun, runtime: Runtime, training: str, share: float) -> list[Stretch]:
    """Stretches between the kept checkpoints of a training, in order."""
    root = runtime.root
    by_step = {
        step: checkpoint
        for step, checkpoint in checkpoints_of(TrainedPart(root, training, None))
        if checkpoint is not None
    }
    ends = [by_step[step] for step in sorted(by_step)]
    if len(ends) < 2 and (share < 1 or not ends):
        raise MissingInput(
            f"{root / training}: {len(ends)} checkpoint(s) of this training are kept, and an audit needs two, between "
            f"which it repeats the steps. Keep more (checkpoint.keep_every_steps)"
            + ("; --share 1 repeats the whole training" if ends else ", and give the run's own file and --root")
        )
    parent = parent_of(pinned(run).train, root)
    before, stretches = (parent.step if parent is not None else 0), []
    for number, end in enumerate(ends):
        stretches.append(Stretch(number, ends[number - 1] if number else None, end, before))
        before = int(end.config["step"])
    return stretches


def _draw(
    run: LoadedRun, runtime: Runtime, training: str, stretches: Sequence[Stretch], share: float, beacon: str
) -> dict[str, Any]:
    """The unfinished draw of this audit, or a new one; stated."""
    journal = run.journal(runtime.root)
    entries = journal.verified()
    listed = [
        {"path": stretch.end.path, "digest": stretch.end.digest, "step": stretch.last_step} for stretch in stretches
    ]
    done = {entry.statement["predicate"]["config"]["value"] for entry in entries if entry.kind == "training_audit"}
    for facts in draws(entries, training):
        same = (facts["share"], facts["checkpoints"], facts["beacon"]) == (share, listed, bool(beacon))
        if same and facts["value"] not in done and (not beacon or facts["nonce"] == beacon):
            return facts
    head, nonce = journal.head(), beacon or secrets.token_hex(32)
    facts = {
        "training": training,
        "head": head,
        "nonce": nonce,
        "beacon": bool(beacon),
        "value": public_value(head, training, nonce),
        "share": share,
        "amount": amount_of(len(stretches), share),
        "checkpoints": listed,
    }
    state_draw(journal, facts, [stretch.end.as_input() for stretch in stretches])
    return facts


def _repeat(
    run: LoadedRun, artifacts: Mapping[str, Manifest], root: Path, stretch: Stretch, scratch: Path
) -> dict[str, Any]:
    """A stretch, repeated and compared; its facts."""
    name = f"steps {stretch.first_step} to {stretch.last_step}"
    for checkpoint in filter(None, (stretch.begin, stretch.end)):
        if problems := verify(checkpoint, root):
            raise ManifestError(f"{root / checkpoint.folder}: is not as it was stated: " + "; ".join(problems[:3]))
    make_private_folder(scratch.parent)  # files found there are treated as an interrupted repetition
    place = scratch / str(stretch.last_step)
    again = repeat(run, artifacts, root, stretch, place / "plain")
    facts: dict[str, Any] = {
        "number": stretch.number,
        "first_step": stretch.first_step,
        "last_step": stretch.last_step,
        "begin": _named(stretch.begin),
        "end": _named(stretch.end),
        "other_arithmetic": other_arithmetic(stretch.end, again),
    }
    if learned_alike(stretch.end, again):
        return {**facts, "result": EQUAL}
    found = differences(stretch.end, root, again, place / "plain", stretch)
    facts["differences"] = vars(found)
    if not facts["other_arithmetic"]:
        get_logger(__name__).warning("audit-training: %s gave other weights", name)
        return {**facts, "result": FALSIFIED}
    get_logger(__name__).info("audit-training: %s differ in bits; measuring the bound of another arithmetic", name)
    nudged = repeat(run, artifacts, root, stretch, place / "nudged", NUDGE)
    moved = differences(nudged, place / "nudged", again, place / "plain", stretch)
    bound = Differences(_MARGIN * moved.weights, _MARGIN * moved.losses)
    return {**facts, "bound": vars(bound), "result": WITHIN if found.within(bound) else FALSIFIED}


def _named(checkpoint: Manifest | None) -> dict[str, str] | None:
    return {"path": checkpoint.path, "digest": checkpoint.digest} if checkpoint is not None else None


def _odds(draw: Mapping[str, Any], count: int) -> dict[str, Any]:
    amount = draw["amount"]
    return {
        "chance_of_one": chance_of_finding(count, amount),
        "chance_of_two": chance_of_finding(count, amount, min(2, count)),
        "surely_found": surely_found(count, amount),
    }


def _verdict(results: Sequence[str]) -> str:
    return next((word for word in (FALSIFIED, WITHIN) if word in results), EQUAL)


def explain(facts: Mapping[str, Any]) -> str:
    """An audit in lines, for a terminal."""
    origin = "a public value that was given" if facts["beacon"] else "generated by whoever signed the draw"
    value, line = facts["value"][:16], facts["head"].partition(":")[0]
    lines = [
        f"drawn: {facts['amount']} of {facts['checkpoints']} stretches of {facts['training']}, by {value} (journal "
        f"line {line}, and a nonce: {origin}); draw {facts['draws']} of this training",
        f"a fault in one stretch is found with probability {facts['chance_of_one']:.4g}, in two of them "
        f"{facts['chance_of_two']:.4g}; with 95 % if {facts['surely_found']} or more are faulty",
    ]
    for repetition in facts["repeated"]:
        words = f"steps {repetition['first_step']} to {repetition['last_step']}: {_RESULTS[repetition['result']]}"
        if "differences" in repetition:
            differences = repetition["differences"]
            words += f"; weights differ by {differences['weights']:.3g}, losses by {differences['losses']:.3g}"
        if "bound" in repetition:
            words += f" (bounds {repetition['bound']['weights']:.3g} and {repetition['bound']['losses']:.3g})"
        lines.append(words)
        lines += (
            [f"  another arithmetic: {', '.join(repetition['other_arithmetic'])}"]
            if repetition["other_arithmetic"]
            else []
        )
    lines.append(f"verdict: {facts['verdict']}")
    return "\n".join(lines)


_RESULTS = {
    EQUAL: "the weights are equal to the bit",
    WITHIN: "other bits, within the bound of another arithmetic",
    FALSIFIED: "FALSIFIED: these steps do not give these weights",
}
