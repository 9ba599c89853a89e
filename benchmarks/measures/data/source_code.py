"""Licences of source files against scancode-toolkit, rules on real trees, planted copies, and speed."""

from __future__ import annotations

import random
import re
import shutil
import sysconfig
import tempfile
from collections.abc import Iterable, Iterator
from pathlib import Path

import numpy as np

from benchmarks.measures import rivals
from benchmarks.measures.goals import Goal, cpu_seconds, figure

_SYMBOL = re.compile(r"[A-Za-z0-9][A-Za-z0-9.+-]*")
_SAME_TEXT = {"Python-2.0": "PSF-2.0", "Libpng": "libpng-2.0"}  # scancode's names for texts of the SPDX list
_SMALL_BYTES = 60_000
_SOURCES = (".py", ".pyi", ".c", ".h", ".hpp", ".cpp", ".js", ".pyx", ".cu", ".sh")


def code(quick: bool) -> list[Goal]:
    """Files of this Python's library and of the packages installed next to the benchmark."""
    library, packages = Path(sysconfig.get_path("stdlib")), Path(np.__file__).parents[1]
    files = [path for path in sorted(packages.rglob("*")) if path.is_file() and not path.is_symlink()]
    return [*_licences(files, 60 if quick else 400), *_generated(files, library), *_chain(library, quick)]


def _licences(files: list[Path], count: int) -> Iterator[Goal]:
    """Licences that Assay states, in files with a header and in licence files, against scancode's."""
    from data_pipeline.code.licences import UNKNOWN, is_licence_file, licence_of_file, licence_of_header

    chosen = random.Random(0)
    small = [path for path in files if path.stat().st_size < _SMALL_BYTES]
    licence_files = {path.read_bytes(): path for path in small if is_licence_file(path.name)}
    sources = [path for path in small if path.suffix in _SOURCES]
    stated: dict[Path, str] = {}
    for path in chosen.sample(sources, len(sources)):
        found = licence_of_header(path.read_text("utf-8", "replace"))
        if found not in ("", UNKNOWN):
            stated[path] = found
        if len(stated) == count:
            break
    headers = len(stated)
    many = list(licence_files.items())
    known = [(path, licence_of_file(data)) for data, path in chosen.sample(many, min(count, len(many)))]
    stated |= {path: found for path, found in known if found != UNKNOWN}
    with tempfile.TemporaryDirectory() as scratch:
        folder = Path(scratch) / "files"
        folder.mkdir()
        names = {path: f"{number:05d}{path.suffix}" for number, path in enumerate(stated)}
        for path, name in names.items():
            shutil.copyfile(path, folder / name)
        oracle = rivals.licences(folder)
    agreed = {path for path, found in stated.items() if agrees(found, oracle.get(names[path], ""))}
    for path in stated.keys() - agreed:
        print(f"#   {path}: {stated[path]}, scancode: {oracle.get(names[path], '')}")
    note = f"{headers} headers, {len(stated) - headers} licence files"
    yield Goal("code_licence_precision", len(agreed) / len(stated), 0.99, note=note)
    yield figure(
        "code_licence_files_known", sum(found != UNKNOWN for _, found in known) / len(known), f"of {len(known)}"
    )


def agrees(ours: str, oracle: str) -> bool:
    """Return whether two expressions name the same licences of the SPDX list."""
    return _symbols(ours) == _symbols(oracle)


def _symbols(expression: str) -> set[str]:
    words = set(_SYMBOL.findall(expression)) - {"AND", "OR", "WITH"}
    return {_SAME_TEXT.get(word, word) for word in words if not word.startswith("LicenseRef-scancode-")}


def _generated(files: Iterable[Path], library: Path) -> Iterator[Goal]:
    """Decisions by content alone: the names that give files away are hidden."""
    from data_pipeline.code.file_rules import FileRules, reason_of

    rules = FileRules(max_file_bytes=0)
    generated, minified = [], []
    for path in files:
        if path.name.endswith(("_pb2.py", "_pb2_grpc.py")):
            text = path.read_text("utf-8", "replace")
            if (
                "AddSerializedFile" in text or "grpc.method_handlers_generic_handler" in text
            ):  # not a file that imports one
                generated.append(reason_of(rules, "x.py", "Python", text)[0])
        elif path.name.endswith((".min.js", ".min.css")):
            minified.append(reason_of(rules, "x.js", "JavaScript", path.read_text("utf-8", "replace"))[0])
    removed = [
        reason_of(rules, path.name, "Python", path.read_text("utf-8", "replace"))[0]
        for path in sorted(library.rglob("*.py"))
        if "site-packages" not in path.parts and "test" not in path.parts
    ]
    for name, reasons, wanted in (("generated", generated, {"generated"}), ("minified", minified, {"minified"})):
        if reasons:
            share = sum(reason in wanted for reason in reasons) / len(reasons)
            yield Goal(f"code_{name}_found", share, 0.95, note=f"of {len(reasons)}")
    yield Goal("code_library_removed", sum(map(bool, removed)) / len(removed), 0.05, "<=", f"of {len(removed)} files")


def _chain(library: Path, quick: bool) -> Iterator[Goal]:
    """Speed of reading and judging, and planted copies with one line in eighty changed."""
    from data_pipeline.config import DataConfig
    from data_pipeline.dedup.dedup import dedup
    from data_pipeline.documents import read_documents, read_rows
    from data_pipeline.filters.clean import clean
    from data_pipeline.ingest import ingest
    from data_pipeline.prepare import select_code
    from governance.stage import Runtime

    source = {"type": "code", "name": "library", "licence": "PSF-2.0", "paths": ["library/**/*"]}
    config = DataConfig.model_validate({"sources": [source]})
    assert config.code is not None, "a source of code has its stage"
    with tempfile.TemporaryDirectory() as scratch:
        folder = Path(scratch)
        copied = [path for path in sorted(library.rglob("*.py")) if "site-packages" not in path.parts]
        for path in copied[: 600 if quick else None]:
            target = folder / "library" / path.relative_to(library)
            target.parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(path, target)
        planted = _plant(folder / "library")
        runtime = Runtime(folder / "root")
        started = cpu_seconds()
        documents = ingest(config.sources, config.ingest, folder, runtime)
        read = cpu_seconds()
        size = documents.stats["bytes_in"] / 1e6
        cleaned = clean(documents, config.clean, runtime)
        before = cpu_seconds()
        selected = select_code(cleaned, config.code, config.sources, runtime, folder)
        judged = cpu_seconds() - before
        found = dedup(selected, config.dedup, runtime, ())
        removed = {Path(row["file"]) for path in found.files("removed", runtime.root) for row in read_rows(path)}
        kept = {Path(document.file) for document in read_documents(selected.files("documents", runtime.root))}
        planted = [path for path in planted if path in kept]
        near = sum(path in removed or path.with_name(f"copy_of_{path.name}") in removed for path in planted)
    yield Goal("code_read_mb_s", size / (read - started), 3.0, note=f"{size:.0f} MB: language, licence, documents")
    yield Goal("code_rules_mb_s", cleaned.stats["bytes_kept"] / 1e6 / judged, 3.0)
    yield Goal("code_planted_copies_found", near / len(planted), 0.95, note=f"of {len(planted)}")


def _plant(folder: Path) -> list[Path]:
    """Files that got a copy with one line in eighty changed."""
    generator = random.Random(1)
    paths = [path for path in sorted(folder.rglob("*.py")) if 20_000 < path.stat().st_size < 100_000][:100]
    for path in paths:
        lines = path.read_text("utf-8", "replace").splitlines(keepends=True)
        for row in generator.sample(range(len(lines)), len(lines) // 80):
            lines[row] = lines[row].replace("self", "this").replace("(", "_changed(", 1)
        path.with_name(f"copy_of_{path.name}").write_text("".join(lines), "utf-8")
    return [path.relative_to(folder) for path in paths]
