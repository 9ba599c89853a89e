"""Energy of many roots, divided into final training and development.

Development is all that the final training did not take.

    final training         every attempt of the training that made the model
    models before          every attempt of the trainings that it goes on from, was fine-tuned or distilled from
    data                   the artifacts behind the tokens of these trainings
    other trainings        experiments, earlier runs, everything else that trained
    other work             the rest: evaluations, reports, data that was not used, attempts that left no artifact

The law: the rows add up to everything that the ledgers hold, exactly, in millijoules; an interval that two roots hold,
because one was copied from the other, counts once.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path

from governance.energy.ancestry import TRAIN, behind, read_trainings
from governance.energy.attribution import EnergyPiece, Sum, add, settle
from governance.energy.checkpoint_cost import Training
from governance.energy.ledger import FILE_NAME, Interval, files_of, read_ledger
from governance.errors import ConfigError, ManifestError, MissingInput
from governance.manifest import FILE_NAME as MANIFEST
from governance.manifest import KEY_LENGTH, Manifest, read_manifest
from governance.stage import read_artifact, root_of

FINAL, BEFORE, DATA, OTHERS, REST = "final training", "models before", "data", "other trainings", "other work"


@dataclass(frozen=True)
class Share:
    """A part of the energy, with scenarios by the meters' bounds."""

    value: Fraction
    low: float | None
    high: float | None
    """Bounds; None where something that used energy had no meter."""


@dataclass(frozen=True)
class Development:
    """Energy of several roots by purpose."""

    final: str
    """Folder of the final training."""
    root: Path
    rows: Mapping[str, Sum]
    total: Sum
    copied: int
    """Intervals that more than one root holds."""
    missing: tuple[str, ...]
    """Ancestors whose manifests are gone: their energy is among the other rows."""

    def share(self, *kept: str) -> Share | None:
        """Share of all energy outside the rows `kept`; None if unmeasured."""
        ours = [piece for name, piece in self.rows.items() if name in kept]
        rest = [piece for name, piece in self.rows.items() if name not in kept]
        total = self.total.measured
        if not total or any(one.measured is None for one in ours):
            return None
        spent = sum(one.measured or 0 for one in rest)
        return Share(Fraction(spent, total), _bound(rest, ours, "low", "high"), _bound(rest, ours, "high", "low"))


def _bound(rest: Iterable[Sum], ours: Iterable[Sum], of_rest: str, of_ours: str) -> float | None:
    """Share with rest and kept rows at opposite bounds."""
    parts, others = [getattr(one, of_rest) for one in rest], [getattr(one, of_ours) for one in ours]
    if None in (*parts, *others) or not sum(parts) + sum(others):
        return None
    return float(Fraction(sum(parts), sum(parts) + sum(others)))


def development(roots: Sequence[Path], final: Path | None = None) -> Development:
    """Divide the energy of all roots.

    Without `final`, the training that was finished last is the final one.

    Args:
        roots: folders of artifacts, each with a ledger.
        final: folder of a training or of one of its checkpoints, below one of the roots.

    Raises:
        ConfigError: a root is named twice, or the final training is in none of them.
        MissingInput: a root has no ledger, or there is no training.
        ManifestError: a ledger is of another schema, or two roots tell of one interval differently.
    """
    places = [root.resolve() for root in roots]
    if twice := next((root for root in places if places.count(root) > 1), None):
        raise ConfigError(f"{twice}: is named twice, and would count twice. Name each root once")
    for root in places:
        if not files_of(root / FILE_NAME):
            raise MissingInput(f"{root}: no {FILE_NAME} here. Name folders that runs wrote, as with --root")
    known = {root: [*map(read_manifest, sorted(root.glob(f"{TRAIN}/*/{MANIFEST}")))] for root in places}
    root, name = _last(known) if final is None else _named(final, places)
    intervals, copied = _once(
        {place: read_ledger(place / FILE_NAME) for place in sorted(places, key=lambda p: p != root)}
    )
    line, missing = _line(known, root, name)
    rows: dict[str, list[EnergyPiece]] = {kind: [] for kind in (FINAL, BEFORE, DATA, OTHERS, REST)}
    for place, mine in intervals.items():
        for piece in settle(mine):
            rows[_kind(piece, place == root, name, line)].append(piece)
    return Development(
        name, root, {kind: add(pieces) for kind, pieces in rows.items()},
        add(piece for pieces in rows.values() for piece in pieces), copied, tuple(missing),
    )  # fmt: skip


def _kind(piece: EnergyPiece, at_home: bool, final: str, line: Mapping[str, Training]) -> str:
    if piece.artifact == final and at_home:
        return FINAL
    if piece.artifact in line and piece.artifact != final:
        return BEFORE
    if piece.stage == TRAIN:
        return OTHERS
    return DATA if any(piece.artifact in training.data for training in line.values()) else REST


def _last(known: Mapping[Path, Sequence[Manifest]]) -> tuple[Path, str]:
    """Root and folder of the training that was finished last."""
    made = [(str(one.run.get("finished") or ""), root, one.folder) for root, found in known.items() for one in found]
    if not made:
        places = ", ".join(map(str, known))
        raise MissingInput(f"{places}: no finished training. Name a checkpoint of the final one: --final CHECKPOINT")
    _, root, folder = max(made, key=lambda one: one[0])
    return root, folder


def _named(final: Path, roots: Sequence[Path]) -> tuple[Path, str]:
    """Root and folder of the training that an artifact names."""
    manifest, root = read_artifact(final), root_of(final)
    key = manifest.key if manifest.stage == TRAIN else manifest.config.get("train_key")
    if not isinstance(key, str):
        raise ConfigError(f"--final {final}: is of the stage {manifest.stage}. Name a training or a checkpoint")
    if root not in roots:
        raise ConfigError(f"--final {final}: is below none of the roots. Name its root too: {root}")
    return root, f"{TRAIN}/{key[:KEY_LENGTH]}"


def _line(known: Mapping[Path, Sequence[Manifest]], home: Path, final: str) -> tuple[dict[str, Training], list[str]]:
    """The final training with those before it, and lost ancestors."""
    found: dict[str, Training] = {}
    for root in sorted(known, key=lambda place: place != home):
        for name, training in read_trainings(known[root], root)[0].items():
            found.setdefault(name, training)
        for path in sorted(root.glob(f"checkpoint/*/{MANIFEST}")):  # unfinished trainings name the same inputs
            manifest = read_manifest(path)
            folder = f"{TRAIN}/{str(manifest.config.get('train_key'))[:KEY_LENGTH]}"
            if folder not in found:
                found[folder] = behind(manifest, (), root)
    waiting, line, missing = [final], dict[str, Training](), list[str]()
    for name in waiting:
        if name in line:
            continue
        if name not in found:
            missing.append(name)
        line[name] = found.get(name, Training())
        missing += line[name].gaps
        waiting += [start.artifact for start in line[name].starts]
    return line, missing


def _once(ledgers: Mapping[Path, Sequence[Interval]]) -> tuple[dict[Path, list[Interval]], int]:
    """Each interval in one root, and the number of copied ones.

    The root is the first that holds the longest form of the interval.

    Raises:
        ManifestError: two forms of one interval, neither of which goes on from the other.
    """
    longest: dict[str, tuple[Path, Interval]] = {}
    copied: set[str] = set()
    for root, intervals in ledgers.items():
        for one in intervals:
            if one.id not in longest:
                longest[one.id] = (root, one)
                continue
            place, other = longest[one.id]
            copied.add(one.id)
            count = min(len(one.samples), len(other.samples))
            if one.samples[:count] != other.samples[:count]:
                raise ManifestError(
                    f"{place} and {root}: their ledgers tell of the interval {one.id} differently. One was altered: "
                    "assay governance verify ROOT --deep"
                )
            if len(one.samples) > len(other.samples):
                longest[one.id] = (root, one)
    kept = {root: [one for one in intervals if longest[one.id][0] == root] for root, intervals in ledgers.items()}
    return kept, len(copied)
