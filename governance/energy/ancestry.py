"""Ancestors of each training, for energy attribution.

A training names its tokens, and the checkpoint (or the training) that it goes on from, or was fine-tuned or distilled
from, as its inputs; the checkpoint of one that began with an export of this root is in its `run.origin`. What is behind
any other folder of weights is a gap, and so is what is behind a checkpoint of another root, where this root has one of
the same key and another digest. One that goes on counts its tokens on: `stats.continued` states from how many. What is
behind the tokens is data; a model behind the data (it wrote or judged documents as a checkpoint of this root) is a
start too. Verdicts and source files are not measured, and are skipped.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from pathlib import Path, PurePosixPath

from governance.energy.attribution import Sum
from governance.energy.checkpoint_cost import ParentModel, Training
from governance.errors import ManifestError, MissingInput
from governance.files import read_lines
from governance.manifest import FILE_NAME, KEY_LENGTH, LINKED_FROM, SOURCES, Input, Manifest, read_manifest

TRAIN, CHECKPOINT = "train", "checkpoint"
RECORD = "metrics.jsonl"
_NO_WORK = (*SOURCES, "verdict")
_DRAWS = "teacher_logits"
"""Stage of what was drawn from a teacher: data of a training, which holds no tokens of its own."""


def read_trainings(manifests: Iterable[Manifest], root: Path) -> tuple[dict[str, Training], dict[str, Manifest]]:
    """Trainings, their parents, and all artifacts walked.

    Args:
        manifests: artifacts that are known.
        root: where another one is read, and the trainings' records; a missing one is a gap.

    Returns:
        training's folder -> Training; artifact's folder -> manifest.
    """
    walk = _Walk(manifests, root)
    waiting = [folder for folder, manifest in walk.known.items() if manifest.stage == TRAIN]
    trainings: dict[str, Training] = {}
    for folder in waiting:
        made = walk.find(folder) or walk.unfinished.get(folder)
        if folder not in trainings and made is not None and made.stage in (TRAIN, CHECKPOINT):
            trainings[folder] = walk.training(made, folder)
            waiting += [start.artifact for start in trainings[folder].starts]
    return trainings, walk.known


def corpus_of(manifests: Iterable[Manifest]) -> Manifest | None:
    """The artifact that holds the tokens: packed where they were packed.

    Returns None where there are no tokens yet.
    """
    tokens = {manifest.stage: manifest for manifest in manifests if manifest.stage in ("encode", "pack")}
    return tokens.get("pack", tokens.get("encode"))


def read_behind(manifests: Sequence[Manifest], root: Path) -> list[str]:
    """The files that `read_trainings` and `behind` read beyond `manifests`.

    Paths of manifests and of trainings' records, relative to the root and sorted. Later calls return at least these.
    """
    trainings, known = read_trainings(manifests, root)
    walk = _Walk(known.values(), root)
    corpus = corpus_of(manifests)
    if corpus is not None:
        walk.training(corpus, corpus.folder)
    listed = {manifest.folder for manifest in manifests}
    records = [f"{folder}/{RECORD}" for folder in trainings if folder not in listed]
    there = [record for record in records if (root / record).exists()]
    return sorted([*(f"{folder}/{FILE_NAME}" for folder in {*walk.known} - listed), *there])


def behind(corpus: Manifest, manifests: Iterable[Manifest], root: Path) -> Training:
    """A corpus with its ancestors, as if a training had used it."""
    found = _Walk(manifests, root).training(corpus, corpus.folder)
    return Training((corpus.folder, *found.data), starts=found.starts, gaps=found.gaps, linked=found.linked)


class _Walk:
    def __init__(self, manifests: Iterable[Manifest], root: Path) -> None:
        self.root = root
        self.known = {manifest.folder: manifest for manifest in manifests}
        self.unfinished: dict[str, Manifest] = {}
        """A checkpoint of a training, by the training's folder: it names the same inputs."""

    def find(self, folder: str) -> Manifest | None:
        """The manifest in a folder; None where it is gone or torn."""
        if folder not in self.known:
            try:
                self.known[folder] = read_manifest(self.root / folder / FILE_NAME)
            except (ManifestError, MissingInput):
                return None
        return self.known[folder]

    def training(self, manifest: Manifest, own: str) -> Training:
        """Training facts from its manifest or a checkpoint's, with ancestors."""
        data: dict[str, None] = {}
        starts: dict[ParentModel, None] = {}
        gaps: list[str] = []
        linked = dict.fromkeys(_linked_from(manifest))
        tokens = [item for item in manifest.inputs if item.stage not in (*_NO_WORK, TRAIN, CHECKPOINT, _DRAWS)]
        exported = manifest.exported
        if manifest.stage in (TRAIN, CHECKPOINT):
            weights = [item for item in manifest.inputs if item.stage in SOURCES]
            gaps += [item.path for item in weights if item.digest not in exported]
        waiting = list(manifest.made_from)
        for item in waiting:
            folder = str(PurePosixPath(item.path).parent)
            if item.stage in _NO_WORK or folder in data:
                continue
            if item.stage in (TRAIN, CHECKPOINT):
                start = self._start(item, folder)
                if start is None:
                    gaps.append(item.path)
                elif start.artifact != own:
                    starts[start] = None
                continue
            data[folder] = None
            behind = self.find(folder)
            if behind is None:
                gaps.append(folder)
                continue
            waiting += behind.inputs
            linked.update(dict.fromkeys(_linked_from(behind)))
        used, before = self._used(manifest, own), manifest.stats.get("continued", {}).get("tokens", 0)
        return Training(tuple(data), self._held(tokens), used, tuple(starts), tuple(gaps), tuple(linked), before)

    def _start(self, item: Input, folder: str) -> ParentModel | None:
        """The training of a checkpoint.

        A checkpoint that is gone has no record. Returns None where this root's artifact of that key has another digest:
        the parent is in another root, or was made again since.
        """
        checkpoint = self.find(folder)
        if checkpoint is not None and checkpoint.digest != item.digest:
            return None
        if item.stage == TRAIN:
            return ParentModel(folder, None)
        key = checkpoint.config.get("train_key") if checkpoint is not None else None
        if checkpoint is None or not isinstance(key, str):
            return ParentModel(folder, None)
        training = f"{TRAIN}/{key[:KEY_LENGTH]}"
        self.unfinished[training] = checkpoint
        return ParentModel(training, checkpoint.config.get("step"))

    def _held(self, tokens: Iterable[Input]) -> int | None:
        """Tokens to train on in the shards that a training names.

        Returns None where one of them does not state its tokens.
        """
        total = 0
        for item in tokens:
            manifest = self.find(str(PurePosixPath(item.path).parent))
            held = manifest.stats.get("train_tokens") if manifest is not None else None
            if not isinstance(held, int):
                return None
            total += held
        return total or None

    def _used(self, manifest: Manifest, own: str) -> dict[int, int]:
        """Tokens that were shown up to each step, from the record.

        The last step's figure is from the manifest.
        """
        lines = read_lines(self.root / own / RECORD)
        used = {
            line["step"]: line["tokens"]
            for line in lines
            if isinstance(line, dict) and line.get("event") == "step" and isinstance(line.get("step"), int)
            and isinstance(line.get("tokens"), int)
        }  # fmt: skip
        steps, tokens = manifest.stats.get("steps"), manifest.stats.get("tokens")
        return {**used, steps: tokens} if isinstance(steps, int) and isinstance(tokens, int) else used


def _linked_from(manifest: Manifest) -> list[str]:
    """The earlier artifacts that shards of one were linked from."""
    listed = manifest.run.get(LINKED_FROM, ())
    return [name for name in listed if isinstance(name, str)] if isinstance(listed, (list, tuple)) else []


def recorded(manifests: Iterable[Manifest]) -> dict[str, Sum]:
    """Energy that manifests recorded, for ledgers without artifact names."""
    found = {}
    for manifest in manifests:
        block = manifest.run.get("energy")
        joules = block.get("joules") if isinstance(block, dict) else None
        if isinstance(block, dict) and isinstance(joules, (int, float)):
            measured = round(1000 * joules)
            low, high = (None if block.get(name) is None else round(1000 * block[name]) for name in ("low", "high"))
            found[manifest.folder] = Sum(measured, measured, 0, 0, low, high, 0.0, 0.0, (str(block.get("method")),))
    return found
