"""Verify a whole root, and follow an artifact back to its source files.

`verify_root` promises: one changed byte in a file that a manifest lists, in a manifest, or in a verdict is found, and
the problem names the file. It reads every byte once (as fast as SHA-256 and the disk allow).
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

from governance.errors import ManifestError, MissingInput
from governance.files import json_text
from governance.gate import GovernanceConfig, read_verdict
from governance.log import progress
from governance.manifest import FILE_NAME, Input, Manifest, read_manifest, verify

_SOURCE = "file"  # the stage of an input that is no artifact


def root_of(artifact: Path) -> Path:
    """The root that an artifact's folder, or its manifest, lies in: folders are `<root>/<stage>/<key>`."""
    folder = artifact.parent if artifact.name == FILE_NAME else artifact
    return folder.resolve().parents[1] if (folder / FILE_NAME).exists() else folder.resolve()


def read_artifact(artifact: Path) -> Manifest:
    """The manifest of an artifact, given its folder or its manifest file.

    Raises:
        MissingInput: there is none.
    """
    return read_manifest(artifact if artifact.name == FILE_NAME else artifact / FILE_NAME)


def verify_root(root: Path, config: GovernanceConfig, folder: Path) -> tuple[int, list[str]]:
    """Check every artifact and verdict below `root`; `config` (paths relative to `folder`) says whose verdicts count.

    Returns:
        The number of files read, and the problems in words, each beginning with the file's path below the root.

    Raises:
        MissingInput: there is no artifact below `root`.
    """
    paths = sorted(root.glob(f"*/*/{FILE_NAME}"))
    if not paths:
        raise MissingInput(f"{root}: no artifact here (no <stage>/<key>/{FILE_NAME}). Give the root of a run.")
    problems: list[str] = []
    files = 0
    with progress("verify", len(paths), "artifacts") as advance:
        for path in paths:
            count, found = _verify_artifact(path, root)
            files += count
            problems += found
            advance(1)
    for path in sorted(root.glob("verdicts/*.json")):
        files += 1
        problems += _verify_verdict(path, root, config, folder)
    return files, problems


def _verify_artifact(path: Path, root: Path) -> tuple[int, list[str]]:
    name = path.relative_to(root).as_posix()
    try:
        manifest = read_manifest(path)
    except ManifestError as error:
        return 1, [f"{name}: {str(error).removeprefix(f'{path}: ')}"]
    problems = []
    if path.read_bytes() != json_text(json.loads(path.read_bytes())).encode("utf-8"):
        problems.append(f"{name}: its bytes are not those that were written")
    if manifest.path != name:
        problems.append(f"{name}: says that it is {manifest.path}")
    for item in manifest.inputs:
        problems += [f"{name}: {problem}" for problem in _verify_input(item, root)]
    return 1 + len(manifest.outputs), problems + verify(manifest, root)


def _verify_input(item: Input, root: Path) -> list[str]:
    """An input that is still there must be the one that was used; one that was removed to save space is no fault."""
    path = root / item.path
    if item.stage == _SOURCE or not path.exists():
        return []
    try:
        found = read_manifest(path).digest
    except ManifestError:
        return []  # reported under its own name
    return (
        []
        if found == item.digest
        else [f"was made from {item.path} with digest {item.digest[:16]}…, now {found[:16]}…"]
    )


def _verify_verdict(path: Path, root: Path, config: GovernanceConfig, folder: Path) -> list[str]:
    name = path.relative_to(root).as_posix()
    try:
        verdict = read_verdict(path, config, folder)
    except ManifestError as error:
        return [f"{name}: {str(error).removeprefix(f'{path}: ')}"]
    if path.read_bytes() != json_text(json.loads(path.read_bytes())).encode("utf-8"):
        return [f"{name}: its bytes are not those that were written"]
    return [f"{name}: {problem}" for problem in _verify_input(Input(stage="encode", **verdict["corpus"]), root)]


def lineage(manifest: Manifest, root: Path) -> Iterator[tuple[int, Input]]:
    """What an artifact was made from, depth first, each ancestor once: (depth, input), down to the source files."""
    seen: set[str] = set()

    def walk(current: Manifest, depth: int) -> Iterator[tuple[int, Input]]:
        for item in current.inputs:
            if (item.digest + item.path) in seen:
                continue
            seen.add(item.digest + item.path)
            yield depth, item
            if item.stage != _SOURCE and (root / item.path).exists():
                yield from walk(read_manifest(root / item.path), depth + 1)

    yield from walk(manifest, 1)
