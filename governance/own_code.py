"""A run's own code, named by a dotted path (`mylab.rules:not_loud`).

A module is searched for in the folder of the run's file, then among the installed packages. Its *source* is the
module's file or, inside a package, every `.py` file of the top-level package, and the same of each module in the folder
of the run's file that one of these imports by an import statement: their digests enter the key of each artifact that
the code makes, so a change makes new artifacts. A process that is to run the code compares the digest
first, so that an edit while a stage runs ends the stage instead of mixing two versions in one artifact.

The code runs in the worker's process with its rights: it is trusted as the run's file is.
"""

from __future__ import annotations

import ast
import contextlib
import importlib
import importlib.util
import re
import sys
import traceback
from collections.abc import Callable, Iterator, Sequence
from collections.abc import Set as AbstractSet
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from governance import processes
from governance.config import canonical_json
from governance.errors import ConfigError, MissingInput
from governance.files import sha256_bytes, sha256_file

DOTTED = r"^[A-Za-z_]\w*(\.[A-Za-z_]\w*)*:[A-Za-z_]\w*$"
"""The form `package.module:function`."""
_running: dict[str, str] = {}
"""Root and digest of imported sources: of all that a top-level name needs ("mylab"), and of it alone ("mylab.py")."""


@dataclass(frozen=True)
class OwnCode:
    """A function of the run's own, and its source files."""

    dotted: str
    root: Path
    """The folder that holds the top-level module or package."""
    files: tuple[Path, ...]

    @property
    def digest(self) -> str:
        """SHA-256 of the source: its files, their names and contents."""
        return source_digest([(name, sha256_file(path)) for name, path in self.named()])

    def named(self) -> list[tuple[str, Path]]:
        """Each source file's name below the root, and its path."""
        return [(path.relative_to(self.root).as_posix(), path) for path in self.files]


def source_digest(files: Sequence[tuple[str, str]]) -> str:
    """SHA-256 of a source from the names and digests of its files."""
    return sha256_bytes(canonical_json([list(file) for file in files]))


def find_code(dotted: str, folder: Path, where: str) -> OwnCode:
    """Find a function's source, without running it.

    Args:
        dotted: `package.module:function`.
        folder: the folder of the run's file, which is searched first.
        where: what names the function, for errors.

    Raises:
        MissingInput: there is no such module.
    """
    parts = dotted.partition(":")[0].split(".")
    near = folder.absolute()
    module = near.joinpath(*parts)
    for file in (module.with_suffix(".py"), module / "__init__.py"):
        if file.is_file():
            return OwnCode(dotted, near, _with_imported(near, _source(near, parts[0], file)))
    with contextlib.suppress(ImportError, ValueError, AttributeError):
        spec = importlib.util.find_spec(parts[0])
        if spec is not None and spec.origin is not None and spec.origin.endswith(".py"):
            origin = Path(spec.origin)
            root = origin.parents[1] if origin.name == "__init__.py" else origin.parent
            inside = root.joinpath(*parts)
            if inside.with_suffix(".py").is_file() or (inside / "__init__.py").is_file():
                return OwnCode(dotted, root, _source(root, parts[0], origin))
    raise MissingInput(
        f"{where} = {dotted!r}: no module {'.'.join(parts)} in {folder.absolute()} or among the installed packages. "
        "Correct the name, or put the file next to the run's file."
    )


def _source(root: Path, top: str, file: Path) -> tuple[Path, ...]:
    folder = root / top
    return tuple(sorted(path for path in folder.rglob("*.py") if path.is_file())) if folder.is_dir() else (file,)


def _with_imported(root: Path, files: Sequence[Path]) -> tuple[Path, ...]:
    """The files, and those below `root` that they import.

    Imports of imported files are followed.
    """
    found = set(files)
    waiting = list(files)
    seen: set[str] = set()
    while waiting:
        for top in _imported(waiting.pop()) - seen:
            seen.add(top)
            module = root / f"{top}.py"
            new = set(_source(root, top, module)) if module.is_file() or (root / top).is_dir() else set()
            waiting += new - found
            found |= new
    return tuple(sorted(found))


def _imported(file: Path) -> set[str]:
    """Top-level names in the import statements of a file."""
    try:
        tree = ast.parse(file.read_bytes())
    except (OSError, SyntaxError, ValueError):
        return set()  # `load` reports it
    names = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            names |= {alias.name.partition(".")[0] for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.level == 0 and node.module:
            names.add(node.module.partition(".")[0])
    return names


def load(code: OwnCode, digest: str = "") -> Callable[..., Any]:
    """Import the function.

    Args:
        code: where it is.
        digest: that of the source when the stage started; "" accepts the present one.

    Raises:
        ConfigError: the source has changed since, the module cannot be imported, or has no such function.
    """
    present = code.digest
    if digest and present != digest:
        raise ConfigError(
            f"{code.dotted}: its source in {code.root} changed while the stage ran (from {digest[:12]} to "
            f"{present[:12]}). Start again: the artifact is made with one version of the code."
        )
    module_name, _, name = code.dotted.partition(":")
    top = module_name.partition(".")[0]
    by_top: dict[str, list[tuple[str, str]]] = {}
    for file, path in code.named():
        by_top.setdefault(file.partition("/")[0].removesuffix(".py"), []).append((file, sha256_file(path)))
    versions = {f"{each}.py": f"{code.root} {source_digest(files)}" for each, files in by_top.items()}
    versions[top] = f"{code.root} {present}"
    if any(_running.get(key, version) != version for key, version in versions.items()):
        _forget(by_top.keys())
    try:
        with _first_on_path(code.root):
            module = importlib.import_module(module_name)
    except (Exception, SystemExit) as error:
        raise ConfigError(
            f"{code.dotted}: the module cannot be imported ({type(error).__name__}: {error}). Correct it."
        ) from error
    if (origin := Path(module.__file__ or "")) not in code.files:
        raise ConfigError(f"{code.dotted}: the name {module_name} is taken by {origin}. Rename the module.")
    _running.update(versions)
    function: Callable[..., Any] | None = getattr(module, name, None)
    if function is None or not callable(function):
        functions = sorted(key for key, value in vars(module).items() if callable(value) and not key.startswith("_"))
        raise ConfigError(f"{code.dotted}: the module has no function {name!r}; it has: {', '.join(functions) or '-'}.")
    return function


def _forget(tops: AbstractSet[str]) -> None:
    """Drop the modules of another version, which a long-lived worker still holds."""
    for name in [name for name in sys.modules if name.partition(".")[0] in tops - sys.stdlib_module_names]:
        del sys.modules[name]
    importlib.invalidate_caches()


@contextlib.contextmanager
def _first_on_path(folder: Path) -> Iterator[None]:
    sys.path.insert(0, str(folder))
    kept, sys.dont_write_bytecode = sys.dont_write_bytecode, True  # a stale .pyc could hide a change within a second
    try:
        yield
    finally:
        sys.dont_write_bytecode = kept
        sys.path.remove(str(folder))


def first_line(error: BaseException, path: Path | None = None, name: str = "") -> str:
    """An exception, and where it was raised, in one line.

    A `path` in its words is replaced by a `name`, which is the same on every machine.
    """
    place = ""
    for frame, line in traceback.walk_tb(error.__traceback__):
        if frame.f_code.co_filename != processes.__file__:  # there the limit of time raises, in the midst of own code
            place = f" at {Path(frame.f_code.co_filename).name}:{line}"
    words = f"{type(error).__name__}: {error}"
    return re.sub(r"\s+", " ", words.replace(str(path), name) if path else words)[:300] + place
