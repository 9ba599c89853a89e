"""Random edits over every file of a root that the product made: each must be found by `verify --deep`, its file named.

The root is a whole run (two sources' files, ids of their own, an offline W&B mirror, checkpoints, verdict, report). An
edit is one of `EDITS`, on a file drawn from all files below the root, whatever they are. No edits of evidence, and not
drawn, are the removal of an empty lock, of `fetch/digests.json` (a cache: without it sources are read again) or of
`report/latest.*` (second names of the newest report), and a
change that leaves the bytes as they were. Where a manifest is exchanged with a file that it lists, it is the manifest
that must be named: its files cannot be checked.
"""

from __future__ import annotations

import os
import random
import shutil
import subprocess
import sys
import tempfile
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from itertools import islice
from pathlib import Path

from benchmarks.measures.corpora import rows, write_jsonl
from benchmarks.measures.goals import Goal, figure
from benchmarks.measures.small_run import SMALL_RUN, write_run
from governance.gate.verdict import GovernanceConfig, Keyring
from governance.manifest import FILE_NAME
from governance.verification import Verified, verify_root

_HERE = Path(__file__).resolve().parents[3]
_SOURCE = 'name = "tales"\npaths = ["*.jsonl"]\n'
_CONFIG = (
    SMALL_RUN.replace(_SOURCE, 'name = "mixed"\npaths = ["raw/*.jsonl"]\nid_field = "id"\n').replace(
        'mode = "disabled"', 'mode = "offline"'
    )
    + "\n[energy]\nsample_seconds = 0.5\n"
)
_CACHES = ("digests.json", "latest.html", "latest.json")  # made again, or second names of what lies elsewhere
KEYS = GovernanceConfig(trusted_keys=("key.pem.pub",))


def make_root(folder: Path, documents: int = 400) -> Path:
    """A finished run below `folder`, and the root of it."""
    texts = [{"id": row["id"], "text": row["text"]} for row in islice(rows("corpora/wiki.jsonl.gz"), documents)]
    for number, part in enumerate((texts[::2], texts[1::2])):
        write_jsonl(folder / "raw" / f"{number}.jsonl", part)
    write_run(folder, _CONFIG)
    shutil.copy(_HERE / "configs" / "policy.toml", folder / "policy.toml")
    words = [sys.executable, "-m", "pretrain", "run", str(folder / "run.toml"), "--root", str(folder / "root")]
    environment = {**os.environ, "PYTHONPATH": str(_HERE), "OMP_NUM_THREADS": "1", "XDG_RUNTIME_DIR": str(folder)}
    done = subprocess.run(words, env=environment, capture_output=True, text=True, check=False)
    if done.returncode:
        raise RuntimeError(f"the run ended with {done.returncode}: {done.stderr[-2000:]}")
    return folder / "root"


def check(root: Path, keys: Path | None = None) -> Verified:
    """`verify --deep` with the run's public key, which lies in `keys` or next to the root."""
    return verify_root(root, Keyring(KEYS, keys or root.parent), deep=True)


def files_of(root: Path) -> list[Path]:
    """Every file below a root, links left out, in name order."""
    found = (Path(parent) / name for parent, _, names in os.walk(root) for name in names)
    return sorted(path for path in found if not path.is_symlink())


@dataclass
class Edit:
    """One edit: the files that must be named, and the way back."""

    named: list[Path]
    before: dict[Path, bytes | None] = field(default_factory=dict)
    """File -> its bytes; None: it was not there."""

    def write(self, path: Path, data: bytes | None) -> None:
        """Give a file other bytes, its times kept; None removes it."""
        self.before.setdefault(path, path.read_bytes() if path.exists() else None)
        times = path.stat() if path.exists() else None
        path.unlink(missing_ok=True)  # other names of the same file stay as they are
        if data is not None:
            path.write_bytes(data)
        if data is not None and times is not None:
            os.utime(path, ns=(times.st_atime_ns, times.st_mtime_ns))

    @property
    def changed(self) -> bool:
        """Return whether any byte differs from before."""
        return any((path.read_bytes() if path.exists() else None) != data for path, data in self.before.items())

    def undo(self) -> None:
        """Restore every file."""
        for path, data in list(self.before.items()):
            self.write(path, data)


def _on(path: Path, data: bytes | None) -> Edit:
    edit = Edit([path])
    edit.write(path, data)
    return edit


def flip(path: Path, others: Sequence[Path], chance: random.Random) -> Edit:
    """Flip one bit."""
    data = bytearray(path.read_bytes())
    if data:
        data[chance.randrange(len(data))] ^= 1 << chance.randrange(8)
    return _on(path, bytes(data))


def digit(path: Path, others: Sequence[Path], chance: random.Random) -> Edit:
    """Change one digit; in a file without digits, flip one bit."""
    data = bytearray(path.read_bytes())
    places = [place for place, byte in enumerate(data[: 1 << 20]) if 48 <= byte <= 57]
    if not places:
        return flip(path, others, chance)
    place = chance.choice(places)
    data[place] = 48 + (data[place] - 48 + chance.randint(1, 9)) % 10
    return _on(path, bytes(data))


def truncate(path: Path, others: Sequence[Path], chance: random.Random) -> Edit:
    """Cut off the end."""
    data = path.read_bytes()
    return _on(path, data[: chance.randrange(len(data))] if data else data)


def append(path: Path, others: Sequence[Path], chance: random.Random) -> Edit:
    """Append bytes, or a line of the file itself."""
    data = path.read_bytes()
    lines = data.splitlines(keepends=True)
    more = chance.choice(lines) if lines and chance.random() < 0.5 else chance.randbytes(chance.randint(1, 40))
    return _on(path, data + more)


def drop_line(path: Path, others: Sequence[Path], chance: random.Random) -> Edit:
    """Remove one line."""
    lines = path.read_bytes().splitlines(keepends=True)
    if lines:
        lines.pop(chance.randrange(len(lines)))
    return _on(path, b"".join(lines))


def swap(path: Path, others: Sequence[Path], chance: random.Random) -> Edit:
    """Exchange the bytes of two files."""
    other = chance.choice(others)
    ours, theirs = path.read_bytes(), other.read_bytes()
    owners = [
        one for one in (path, other) if one.name == FILE_NAME and {path, other} & set(one.parent.rglob("*")) - {one}
    ]
    edit = Edit(owners or [path, other])
    edit.write(path, theirs)
    edit.write(other, ours)
    return edit


def rename(path: Path, others: Sequence[Path], chance: random.Random) -> Edit:
    """Rename a file in its folder. A manifest must be named by its old name, as nothing is listed without it."""
    target = path.with_name(f"{chance.choice('abcdef')}{path.name}")
    edit = _on(target, path.read_bytes())
    edit.write(path, None)
    edit.named = [target] * (path.name != FILE_NAME) + [path] * bool(edit.before[path] and path.name not in _CACHES)
    return edit


def delete(path: Path, others: Sequence[Path], chance: random.Random) -> Edit:
    """Delete a file; empty locks and caches are not evidence and stay."""
    data = path.read_bytes()
    return _on(path, None if data and path.name not in _CACHES else data)


def add(path: Path, others: Sequence[Path], chance: random.Random) -> Edit:
    """Add a foreign file, or a copy of an existing one under a new name, to an existing folder."""
    name = chance.choice([f"{chance.randbytes(4).hex()}.json", f"{path.stem}-2{path.suffix}", f"{path.name}.bak"])
    return _on(path.parent / name, chance.choice([path.read_bytes(), chance.randbytes(60)]))


EDITS: tuple[Callable[[Path, Sequence[Path], random.Random], Edit], ...] = (
    flip, digit, truncate, append, drop_line, swap, rename, delete, add,
)  # fmt: skip


@dataclass
class Found:
    """The outcome of many edits."""

    problems: Counter[str] = field(default_factory=Counter)
    """Class -> edits that were found as a problem that names each file."""
    notes: Counter[str] = field(default_factory=Counter)
    """Class -> edits whose file a note names: bytes behind the last statement of a file that grows."""
    missed: list[str] = field(default_factory=list)

    @property
    def made(self) -> int:
        """The number of edits."""
        return self.problems.total() + self.notes.total() + len(self.missed)


def edits(root: Path, count: int, seed: int, classes: Sequence[str] = ()) -> Found:
    """So many random edits of a root, one at a time, each undone; the class and then the file are drawn evenly."""
    chance, found = random.Random(seed), Found()
    chosen = [edit for edit in EDITS if not classes or edit.__name__ in classes]
    everything = files_of(root)
    while found.made < count:
        make, path = chance.choice(chosen), chance.choice(everything)
        edit = make(path, everything, chance)
        try:
            if edit.changed:
                _note(found, make.__name__, edit, root)
        finally:
            edit.undo()
    return found


def _note(found: Found, name: str, edit: Edit, root: Path) -> None:
    verified = check(root)
    lacking = [path for path in edit.named if not _names(verified.problems, path, root)]
    if not lacking:
        found.problems[name] += 1
    elif all(_names(verified.notes, path, root) for path in lacking):
        found.notes[name] += 1
    else:
        paths = ", ".join(path.relative_to(root).as_posix() for path in lacking)
        found.missed.append(f"{name} of {paths}: {verified.problems[:3]}")


def _names(lines: Sequence[str], path: Path, root: Path) -> bool:
    """True where a line names the file, or its manifest: of an altered one nothing more can be said."""
    name = path.relative_to(root).as_posix()
    return any(line.startswith(f"{name}:") for line in lines)


def copies(root: Path, folder: Path) -> Iterator[tuple[str, Path]]:
    """The root as it is after a move, copies of each kind, a link, tar and rsync where it is installed."""
    project = root.parent
    ways = {
        "cp -r": ["cp", "-r"], "cp -a": ["cp", "-a"], "rsync -a": ["rsync", "-a"], "rsync -r": ["rsync", "-r"],
    }  # fmt: skip
    for name, words in ways.items():
        if shutil.which(words[0]):
            target = folder / name.replace(" ", "")
            target.mkdir()
            subprocess.run([*words, f"{project}/.", str(target)], check=True)
            yield name, target / "root"
    (folder / "link").mkdir()
    (folder / "link" / "root").symlink_to(root)
    shutil.copy(project / "key.pem.pub", folder / "link")
    yield "symbolic link", folder / "link" / "root"
    (folder / "tar").mkdir()
    subprocess.run(["tar", "-cf", str(folder / "x.tar"), "-C", str(project), "."], check=True)
    subprocess.run(["tar", "-xf", str(folder / "x.tar"), "-C", str(folder / "tar")], check=True)
    yield "tar", folder / "tar" / "root"
    os.rename(folder / "tar", folder / "moved")
    yield "move", folder / "moved" / "root"


def all_files(quick: bool) -> list[Goal]:
    """Edits of every file of a root, and false alarms over copies of it."""
    count = 200 if quick else 1000
    with tempfile.TemporaryDirectory() as scratch:
        root = make_root(Path(scratch) / "project")
        (Path(scratch) / "copies").mkdir()
        alarms = [f"{name}: {line}" for name, copy in copies(root, Path(scratch) / "copies") for line in _said(copy)]
        found = edits(root, count, seed=13)
        alarms += [f"after all was put back: {line}" for line in _said(root)]
        number = len(files_of(root))
    for line in (*found.missed, *alarms):
        print(line, flush=True)
    classes = ", ".join(f"{name} {times}" for name, times in sorted((found.problems + found.notes).items()))
    unsaid = f"{found.notes.total()} of them as an end that is not stated yet"
    return [
        figure("edits.files", number, "of a root that the product made, every one of them editable"),
        Goal(
            "edits.found_of_all", (count - len(found.missed)) / count, 1.0, note=f"{count} edits: {classes}; {unsaid}"
        ),
        Goal("edits.false_alarms", len(alarms), 0, "<=", "untouched, moved, cp -r, cp -a, link, tar, rsync"),
    ]


def _said(root: Path) -> list[str]:
    verified = check(root)
    return [*verified.problems, *verified.notes]
