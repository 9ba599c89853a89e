"""Files of a root that no manifest or rule names.

A file below a root is one of these; `verify` reports any other as foreign:

- an output of a manifest, or listed in its `run.beside` (records of shards, what was read beside documents, a
  training's record, lock, holders and mirrors); a manifest; the journal; a verdict or a refusal, which are signed;
- a file of W&B's runs of the data and of the gate (`wandb/`), which the journal states;
- a file that grows (`running_digests.py`), a signed note (`signed_notes.py`), a model's signature;
- a second name of the newest report's files (`report/latest.html`), whose bytes must be a report's, but for the
  length of its links;
- by rule, because nothing in it is trusted: a lock, which is empty or names its holder; a file that is
  being written, or whose writer was killed; what a clean-up is deleting;
  Slurm's own files below `slurm/` (scripts, logs, answers of the queue, progress, cancellations); the mark that
  `wandb sync` leaves, and W&B's links;
- a file of an unfinished artifact, which cannot be checked; a note names it.
"""

from __future__ import annotations

import json
import os
import re
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from governance.files import is_temporary, json_text, sha256_bytes, sha256_file
from governance.manifest import FILE_NAME, KEY_LENGTH, Manifest, Output, output_fault
from governance.regular_files import read_whole
from governance.signed_notes import NoteSigner
from governance.signing.running_digests import GROWING

_KEY = rf"[0-9a-f]{{{KEY_LENGTH}}}"
_BY_RULE = re.compile(
    rf"""(?x)
    (journal|commit)\.lock | (share-[0-9]+-of-[0-9]+|join|synthetic/requests|claim_[a-z]+-{_KEY})\.lock # locks
    | \.energy[^/]*\.[0-9]+ | .*/\.age~[^/]+ | (.*/)?\.nfs[0-9a-f]+ # a claim, a probe, a file removed while open
    | \.clean-up/.+                                                 # artifacts that are being deleted
    | slurm/[^/]+\.sbatch | slurm/(submitting|rehearsing)
    | slurm/(answers|carbon)\.json | slurm/attempts/[^/]+\.made       # a cache, a forecast's choice, lines of progress
    | slurm/(logs|cancelled|preflight|machinery|submitted)/.+
    | (train/{_KEY}/)?wandb/(.+\.wandb\.sync(ed|state)|(wandb/)?latest-run/.+) # marks of a sync, a run's second name
    """
)
_EMPTY = re.compile(r"(journal|commit)\.lock")
_LATEST = re.compile(r"report/latest\.(html|json)")  # second names of a report's files
TO_ROOT, TO_ROOT_FROM_LATEST = "../../", "../"  # in links of a report, and of its second name
RECORD = re.compile(rf"[a-z_-]+/records/{_KEY}([0-9a-f]{{{64 - KEY_LENGTH}}})?(\.[^/]+)?")
"""Record of a shard, or of a join, whose name is the key of its artifact (`mix`)."""
_SIGNED = re.compile(
    rf"journal\.jsonl|(verdicts|refusals)/[^/]+\.json|fetch/(digests|hub-[0-9a-f]{{16}})\.json|checkpoint/{_KEY}/model\.sig"
)
_MIRROR = "wandb/"  # W&B's runs of the data and of the gate
_LINKED = re.compile(rf"((?:train/{_KEY}/)?wandb/)(?:.+)")
_DIGESTS = "fetch/digests.json"
_NOTES = ("*/records/" + "[0-9a-f]" * KEY_LENGTH + "*", _DIGESTS, "fetch/hub-*.json")
_GROWS = re.compile("|".join(re.escape(pattern).replace(r"\*", "[^/]*") for pattern in GROWING))


@dataclass
class UnlistedFiles:
    """Unexpected files, in words that begin with the path."""

    problems: list[str] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)


def beside_faults(manifests: Sequence[Manifest], root: Path) -> list[str]:
    """Differences between listed and present companion files.

    Records of shards are `note_faults`'s.
    """
    listed = {item.path: item for manifest in manifests for item in manifest.beside}
    return [
        f"{path}: {fault}"
        for path, item in sorted(listed.items())
        if not RECORD.fullmatch(path) and (root / path).parent.is_dir() and (fault := output_fault(item, root))
    ]


def find_unlisted(
    manifests: Mapping[str, Manifest | None], root: Path, below: str = "", mirrored: Collection[str] = ()
) -> UnlistedFiles:
    """Files below `root`, or its folder `below`, that nothing names.

    Args:
        manifests: path -> manifest of every artifact below the root; None: it cannot be read.
        root: the artifacts' root.
        below: a folder relative to the root.
        mirrored: files of W&B's runs that the journal states; a run with none of them cannot be checked.
    """
    whole = [manifest for manifest in manifests.values() if manifest is not None]
    listed = {output.path for one in whole for output in (*one.outputs, *one.beside)}
    named = {*manifests, *mirrored, *listed}
    reports = {output.sha256 for one in whole if one.stage == "report" for output in one.outputs}
    found, unsaid = UnlistedFiles(), dict[str, int]()
    stated, unstated = {_run_of(name) for name in mirrored}, set[str]()
    for path in _files(root / below):
        name = path.relative_to(root).as_posix()
        if _EMPTY.fullmatch(name) and path.stat().st_size:
            found.problems.append(f"{name}: is a lock file, which is empty, and has content")
        if _LATEST.fullmatch(name):
            if _as_report(path) not in reports:
                found.problems.append(f"{name}: is not the copy of a report of this root. Remove it.")
            continue
        if name in named or _is_accounted(path, name, manifests):
            continue
        if name.startswith(_MIRROR) and _run_of(name) not in stated:
            unstated.add(_run_of(name))
            continue
        owner = _unfinished(name, manifests)
        if owner is None:
            found.problems.append(f"{name}: is foreign: no manifest lists it and nothing states it")
        elif owner:
            unsaid[owner] = unsaid.get(owner, 0) + 1
    found.notes += [f"{owner}: {count} file(s) that cannot be checked" for owner, count in sorted(unsaid.items())]
    found.notes += [
        f"{name}: the journal states no file of this W&B run, so none is checked" for name in sorted(unstated)
    ]
    return found


def _as_report(path: Path) -> str:
    """SHA-256 of a second name with the links of the report itself."""
    data = path.read_bytes()
    return sha256_bytes(data.replace(f'href="{TO_ROOT_FROM_LATEST}'.encode(), f'href="{TO_ROOT}'.encode()))


def note_faults(manifests: Sequence[Manifest], root: Path, signer: NoteSigner) -> Iterator[str]:
    """Notes and model signatures that nothing vouches for.

    A record counts if it is listed or signed.

    Args:
        manifests: every artifact below the root that can be read.
        root: the artifacts' root.
        signer: decides which notes count.
    """
    listed: dict[str, list[Output]] = {}
    for manifest in manifests:
        for item in manifest.beside:
            if RECORD.fullmatch(item.path):
                listed.setdefault(item.path, []).append(item)
    there = {path.relative_to(root).as_posix() for pattern in _NOTES for path in root.glob(pattern)}
    for name in sorted({*there, *listed}):
        items = listed.get(name, ())
        if name not in there and (root / name).parent.is_dir():
            yield f"{name}: is missing, and an artifact was made with it"
        as_listed = None in [output_fault(item, root) for item in items]
        if name in there and not as_listed and not _is_signed(root / name, name, signer):
            yield f"{name}: is altered or foreign: no artifact lists it so, and no trusted key signed it"


def _content(path: Path, name: str, signer: NoteSigner) -> Any:
    """Content of a signed note; None if absent or altered."""
    try:
        data = read_whole(path)
        written = json.loads(data)
        return signer.open(name, written) if json_text(written).encode("utf-8") == data else None
    except (ValueError, OSError):
        return None


def _is_signed(path: Path, name: str, signer: NoteSigner) -> bool:
    """Return whether a signature vouches for the file.

    The signature is the file's own, or that of a note of its key. A note that was made again differs from an artifact's
    list, and is signed.
    """
    if _content(path, name, signer) is not None:
        return True
    for note in path.parent.glob(f"{path.name.partition('.')[0]}.*.json"):
        content = _content(note, f"{name.rpartition('/')[0]}/{note.name}", signer)
        facts = content.get(path.name) if isinstance(content, dict) else None
        if isinstance(facts, dict) and facts.get("sha256") == sha256_file(path):
            return True
    return False


def _files(folder: Path) -> Iterator[Path]:
    """Every file below a folder, each once.

    A link is followed where it leads out of it.
    """
    top = os.path.realpath(folder)
    seen = {top}
    for parent, folders, names in os.walk(folder, followlinks=True):
        leading = {name: os.path.realpath(os.path.join(parent, name)) for name in folders}
        links = {name for name in folders if os.path.islink(os.path.join(parent, name))}
        again = {name for name in links if leading[name] in seen or leading[name].startswith(f"{top}{os.sep}")}
        seen |= {leading[name] for name in links}
        folders[:] = sorted(set(folders) - again)
        yield from (Path(parent) / name for name in sorted(names))


def _is_accounted(path: Path, name: str, manifests: Mapping[str, Manifest | None]) -> bool:
    """Return whether a rule or another check accounts for a file."""
    if _GROWS.fullmatch(name):
        return not _finished(name, manifests)
    if path.is_symlink() and (place := _LINKED.fullmatch(name)):  # W&B's second name of a file that is listed
        top = path.parents[name.count("/") - place[1].count("/")]
        # Its links to its service's log are absolute, so in a copy they lead to where the root was before.
        log = re.fullmatch(rf"/(.+/)?{place[1]}(wandb/logs/[^/]+)", os.readlink(path))
        return path.resolve().is_relative_to(top.resolve()) or (log is not None and (top / log[2]).is_file())
    return is_temporary(path) or any(rule.fullmatch(name) is not None for rule in (_BY_RULE, _SIGNED, RECORD))


def _run_of(name: str) -> str:
    """Folder of the W&B run that holds a file."""
    return "/".join(name.split("/")[:2])


def _finished(name: str, manifests: Mapping[str, Manifest | None]) -> bool:
    """Return whether a file belongs to a finished artifact."""
    return manifests.get("/".join([*name.split("/")[:2], FILE_NAME])) is not None


def _unfinished(name: str, manifests: Mapping[str, Manifest | None]) -> str | None:
    """Owner of an unlisted file: an unfinished or a torn artifact.

    Returns "" for a torn manifest, and None if nothing accounts for the file.
    """
    stage, _, rest = name.partition("/")
    key, _, file = rest.partition("/")
    if not (file and re.fullmatch(_KEY, key)):
        return None
    path = f"{stage}/{key}/{FILE_NAME}"
    if path not in manifests:
        return f"{stage}/{key}, which is not finished"
    return "" if manifests[path] is None else None
