"""Recomputation of a report from its evidence.

Promises: report.json and report.html are trusted only for which evidence was used and how long growing files were. From
that evidence report.json, the page and the documents are computed again and compared value by value. One changed digit
anywhere is a mismatch, with the stated and the recomputed value; so is evidence that was altered, replaced or lost, and
a file whose digest differs from its sealed manifest, which also exposes a changed list of evidence. Trust in the
signers is checked by `assay governance verify --deep`.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import zip_longest
from pathlib import Path
from types import MappingProxyType
from typing import Any

from governance.config import canonical_json
from governance.errors import ManifestError, MissingInput
from governance.files import json_text, sha256_bytes, sha256_file
from governance.manifest import FILE_NAME, Manifest, read_manifest
from governance.reports.documents.all_documents import VERSION as DOCUMENTS_VERSION
from governance.reports.documents.all_documents import document_texts
from governance.reports.documents.evidence import Evidence
from governance.reports.facts.citations import origin_of
from governance.reports.facts.evidence_ids import read_stated_verdict, verdict_name
from governance.reports.facts.report_facts import facts
from governance.reports.facts.samples import Mask, mask
from governance.reports.report import VERSION, ReportSection
from governance.reports.sections.page import page

MAX_MISMATCHES = 200  # per file
_PIECES = re.compile(r"(<[^>]*>)")
_SECTION = re.compile(r'<section[^>]* aria-label="([^"]*)"')
_NUMBER = re.compile(r"[+-]?\d[\d,]*(?:\.\d+)?(?:e[+-]?\d+)?")


@dataclass(frozen=True)
class Mismatch:
    """One place where a file differs from its evidence."""

    file: str
    place: str
    """JSON pointer, or section, row and line of the page."""
    stated: str
    """Value in the file."""
    evidence: str
    """Value recomputed from the evidence."""
    source: str = ""
    """Ids of the evidence, if known."""

    def line(self) -> str:
        """Line of the command's output."""
        source = f" ({self.source})" if self.source else ""
        return f"{self.file}: {self.place}: states {self.stated}, the evidence gives {self.evidence}{source}"


@dataclass(frozen=True)
class Checked:
    """Result of a recomputation."""

    files: tuple[str, ...]
    numbers: int
    """Numbers in report.json that were computed again."""
    mismatches: tuple[Mismatch, ...]


def newest_report(root: Path) -> Manifest:
    """The report below `root` that was finished last.

    Raises:
        MissingInput: there is none.
    """
    found = [read_manifest(path) for path in sorted(root.glob(f"report/*/{FILE_NAME}"))]
    if not found:
        raise MissingInput(f"{root}: no report here. Write one: assay report CONFIG --root {root}")
    return max(found, key=lambda manifest: (str(manifest.run.get("finished")), manifest.key))


def report_bytes(report: Manifest, root: Path) -> bytes:
    """The report.json of a report, to be read once for all checks.

    Raises:
        ManifestError: it cannot be read.
    """
    return _read(root / report.folder / "report.json")


def recompute(report: Manifest, root: Path, rules: Mask = mask, data: bytes | None = None) -> Checked:
    """Recompute a report and its documents from evidence; compare.

    Args:
        report: the report's manifest.
        root: the artifacts' root.
        rules: masking function used when it was written.
        data: its `report_bytes`, where another check has read them; else they are read here.

    Raises:
        ManifestError: it is of another version of Assay, or the evidence cannot be read.
        MissingInput: an artifact that it reports on is gone.
    """
    _same_version(report, VERSION)
    folder = root / report.folder
    data = report_bytes(report, root) if data is None else data
    try:
        text = data.decode("utf-8")
        stated = json.loads(text)
        entries = [dict(entry) for entry in stated["evidence"]["entries"]]
        verdict = dict(stated["verdict"])
    except (ValueError, KeyError, TypeError) as error:
        raise ManifestError(f"{folder / 'report.json'}: is not a report ({type(error).__name__}: {error})") from error
    artifacts = _artifacts(report, root)
    mismatches = [Mismatch("report.json", *parts) for parts in _verdict(report, verdict, root)]
    if mismatches:
        verdict = _signed(verdict, root)
    section = ReportSection.model_validate_json(json.dumps(report.config), strict=True)
    found = facts(artifacts, verdict, root, rules, section.extra, entries)
    expected = json.loads(json_text(found))
    mismatches += [*json_mismatches("report.json", stated, expected)] or text_mismatches(
        "report.json", text, json_text(found)
    )
    mismatches += text_mismatches("report.html", _read_text(folder / "report.html"), page(found))
    mismatches += _unsealed(report, root, {"report.json": data})
    files = ["report.json", "report.html"]
    for documents in _documents(report, root):
        texts = document_texts(Evidence(expected, artifacts, root))
        for name, expected_text in sorted(texts.items()):
            files.append(name)
            mismatches += text_mismatches(name, _read_text(root / documents.folder / name), expected_text)
        mismatches += _unsealed(documents, root)
    return Checked(tuple(files), sum(1 for _ in numbers_of(expected)), tuple(mismatches))


def rests_on(report: Manifest, root: Path, data: bytes) -> list[Manifest]:
    """Manifests of the report and of its available evidence.

    `data` is its `report_bytes`.

    Raises:
        ManifestError: one is torn or altered.
    """
    try:
        entries = json.loads(data)["evidence"]["entries"]
        named = [str(entry["path"]) for entry in entries]
    except (ValueError, KeyError, TypeError):
        named = []  # `recompute` reports the defect
    paths = dict.fromkeys([*(item.path for item in report.inputs), *named])
    inside = [path for path in paths if path.endswith(f"/{FILE_NAME}") and ".." not in path.split("/")]
    return [report, *(read_manifest(root / path) for path in inside if (root / path).is_file())]


def _unsealed(manifest: Manifest, root: Path, held: Mapping[str, bytes] = MappingProxyType({})) -> Iterator[Mismatch]:
    """Files whose digest differs from their manifest.

    `held` has the bytes of those that were read already, by name: they are judged, not the file of this moment.
    """
    for output in manifest.outputs:
        path = root / output.path
        if path.name in held:
            digest = sha256_bytes(held[path.name])
        else:
            digest = sha256_file(path) if path.is_file() else "no file"
        if digest != output.sha256:
            yield Mismatch(path.name, "SHA-256 of the file", digest, output.sha256, f"in {manifest.path}")


def _same_version(manifest: Manifest, version: int) -> None:
    if manifest.version != version:
        raise ManifestError(
            f"{manifest.path}: was written by version {manifest.version} of {manifest.stage}; this is version "
            f"{version}, which cannot recompute it. Write it again: assay report CONFIG"
        )


def _read_text(path: Path) -> str:
    try:
        return _read(path).decode("utf-8")
    except UnicodeDecodeError as error:
        raise ManifestError(f"{path}: cannot be read: {error}. Remove its folder and report again.") from error


def _read(path: Path) -> bytes:
    try:
        return path.read_bytes()
    except OSError as error:
        raise ManifestError(f"{path}: cannot be read: {error}. Remove its folder and report again.") from error


def _artifacts(report: Manifest, root: Path) -> dict[str, Manifest]:
    """Artifacts of the report, as they were."""
    found = {}
    for item in report.inputs:
        manifest = read_manifest(root / item.path)
        if manifest.digest != item.digest:
            raise ManifestError(
                f"{item.path}: the report is about digest {item.digest[:16]}…, now it is {manifest.digest[:16]}…: it "
                "was made again since. Write the report again."
            )
        found[item.stage] = manifest
    return found


def _verdict(report: Manifest, verdict: Mapping[str, Any], root: Path) -> Iterator[tuple[str, str, str]]:
    """Differences between the reported and the signed verdict."""
    expected, present = report.config.get("verdict_sha256"), sha256_bytes(canonical_json(verdict))
    if present != expected:
        yield "/verdict", f"a verdict of sha256 {present[:16]}…", f"{str(expected)[:16]}…, in the report's manifest"
    path = root / verdict_name(verdict)
    if verdict and path.exists() and read_stated_verdict(path) != verdict:
        yield "/verdict", f"{verdict.get('verdict')} of {verdict.get('signed_at')}", f"a different one in {path.name}"


def _signed(verdict: Mapping[str, Any], root: Path) -> dict[str, Any]:
    """Signed verdict on disk in place of an altered one."""
    path = root / verdict_name(verdict)
    return read_stated_verdict(path) if path.exists() else dict(verdict)


def _documents(report: Manifest, root: Path) -> Iterator[Manifest]:
    for path in sorted(root.glob(f"documents/*/{FILE_NAME}")):
        manifest = read_manifest(path)
        if report.as_input() in manifest.inputs:
            _same_version(manifest, DOCUMENTS_VERSION)
            yield manifest


def numbers_of(value: Any, place: str = "") -> Iterator[tuple[str, float]]:
    """Every number of a JSON value with its place, a JSON pointer."""
    if isinstance(value, bool):
        return
    if isinstance(value, (int, float)):
        yield place, value
    elif isinstance(value, Mapping):
        for name, item in value.items():
            yield from numbers_of(item, f"{place}/{_escaped(name)}")
    elif isinstance(value, Sequence) and not isinstance(value, str):
        for index, item in enumerate(value):
            yield from numbers_of(item, f"{place}/{index}")


def _escaped(name: str) -> str:
    return name.replace("~", "~0").replace("/", "~1")


def json_mismatches(file: str, stated: Any, expected: Any) -> Iterator[Mismatch]:
    """Differences of two JSON values; 1 is not 1.0."""
    for count, (place, ours, theirs) in enumerate(_unlike(stated, expected, "")):
        if count == MAX_MISMATCHES:
            return
        ids = ", ".join(origin_of(expected, place)["from"][:4]) if "evidence" in expected else ""
        yield Mismatch(file, place or "/", _shown(ours), _shown(theirs), ids)


_ABSENT = object()


def _unlike(ours: Any, theirs: Any, place: str) -> Iterator[tuple[str, Any, Any]]:
    if isinstance(ours, dict) and isinstance(theirs, dict):
        for name in sorted({*ours, *theirs}):
            yield from _unlike(ours.get(name, _ABSENT), theirs.get(name, _ABSENT), f"{place}/{_escaped(name)}")
    elif isinstance(ours, list) and isinstance(theirs, list):
        for index, (a, b) in enumerate(zip_longest(ours, theirs, fillvalue=_ABSENT)):
            yield from _unlike(a, b, f"{place}/{index}")
    elif type(ours) is not type(theirs) or ours != theirs:
        yield place, ours, theirs


def _shown(value: Any) -> str:
    if value is _ABSENT:
        return "no value"
    text = json.dumps(value, ensure_ascii=False)
    return text if len(text) <= 120 else f"{text[:120]}…"


def text_mismatches(file: str, stated: str, expected: str) -> list[Mismatch]:
    """Differences of two texts: HTML by tag and word, others by line."""
    if stated == expected:
        return []
    split = _html_pieces if file.endswith(".html") else _line_pieces
    ours, theirs = split(stated), split(expected)
    if len(ours) != len(theirs):
        pairs = enumerate(zip(ours, theirs, strict=False))
        first = next((index for index, (a, b) in pairs if a != b), min(len(ours), len(theirs)))
        place, a = ours[first] if first < len(ours) else ("end of file", "no text")
        b = theirs[first][1] if first < len(theirs) else "no text"
        return [Mismatch(file, f"{place} and after", _short(a), _short(b))]
    apart = [(a, b) for a, b in zip(ours, theirs, strict=True) if a[1] != b[1]]
    return [Mismatch(file, place, *_numbers(a, b)) for (_, a), (place, b) in apart[:MAX_MISMATCHES]]


def _html_pieces(text: str) -> list[tuple[str, str]]:
    """Split into tags and texts, each with its section and row heading."""
    pieces, section, row, before = [], "head of the page", "", ""
    for piece in _PIECES.split(text):
        if found := _SECTION.match(piece):
            section, row = found[1], ""
        elif piece.startswith(("<caption", "<tr", "<h3", "<h4", "<dt", "<figure")):
            row = ""
        elif piece and not piece.startswith("<") and not row and before.startswith(
            ("<caption", "<th", "<h3", "<h4", "<dt", "<b", "<code", "<bdi", "<title")
        ):  # fmt: skip
            row = piece
        before = piece or before
        pieces.append((f"{section}, {_short(row)}" if row else section, piece))
    return pieces


def _line_pieces(text: str) -> list[tuple[str, str]]:
    return [(f"line {number}", line) for number, line in enumerate(text.split("\n"), 1)]


def _numbers(ours: str, theirs: str) -> tuple[str, str]:
    """First differing number with its context, or the differing texts."""
    a, b = (_NUMBER.findall(text) for text in (ours, theirs))
    if len(a) == len(b) and a != b and _NUMBER.sub("0", ours) == _NUMBER.sub("0", theirs):
        apart = [(x, y) for x, y in zip(a, b, strict=True) if x != y]
        x, y = apart[0]
        around = _short(theirs)
        return f"{x}", f"{y} in {around!r}" if around != y else y
    return repr(_short(ours)), repr(_short(theirs))


def _short(text: str) -> str:
    line = " ".join(text.split())
    return line if len(line) <= 100 else f"{line[:100]}…"
