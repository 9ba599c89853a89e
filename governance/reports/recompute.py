"""Recomputation of a report from its evidence.

Promises: nothing of report.json or report.html is believed but which evidence was used and how far files had grown
then. From that evidence all is computed anew, report.json, the page and the documents, and compared value by value and
piece by piece. One changed digit anywhere in any of them is a fault, with what stands there and what the evidence
gives; so is evidence that was altered, replaced or lost since, and a file that is not the one that its own sealed
manifest names, which finds a change in what the report says of its evidence, too. Whether to believe the signers is
another question, which `assay governance verify --deep` answers.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import zip_longest
from pathlib import Path
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

MOST_FAULTS = 200  # of one file: who changed everything need not be told everything
_PIECES = re.compile(r"(<[^>]*>)")
_SECTION = re.compile(r'<section[^>]* aria-label="([^"]*)"')
_NUMBER = re.compile(r"[+-]?\d[\d,]*(?:\.\d+)?(?:e[+-]?\d+)?")


@dataclass(frozen=True)
class Fault:
    """One place that is not as the evidence gives it."""

    file: str
    place: str
    """A JSON pointer, or a section, row and line of the page."""
    stands: str
    """What the file says there."""
    evidence: str
    """What the evidence gives."""
    source: str = ""
    """Ids of the evidence, where they are known."""

    def line(self) -> str:
        """As it is printed."""
        source = f" ({self.source})" if self.source else ""
        return f"{self.file}: {self.place}: says {self.stands}, the evidence gives {self.evidence}{source}"


@dataclass(frozen=True)
class Checked:
    """Result of a recomputation."""

    report: Manifest
    files: tuple[str, ...]
    numbers: int
    """Numbers in report.json that were computed again."""
    faults: tuple[Fault, ...]


def newest_report(root: Path) -> Manifest:
    """The report below `root` that was finished last.

    Raises:
        MissingInput: there is none.
    """
    found = [read_manifest(path) for path in sorted(root.glob(f"report/*/{FILE_NAME}"))]
    if not found:
        raise MissingInput(f"{root}: no report here. Write one: assay report CONFIG --root {root}")
    return max(found, key=lambda manifest: (str(manifest.run.get("finished")), manifest.key))


def recompute(report: Manifest, root: Path, rules: Mask = mask) -> Checked:
    """Recompute a report and its documents from evidence; compare.

    Args:
        report: the report's manifest.
        root: the artifacts' root.
        rules: what masked personal data when it was written.

    Raises:
        ManifestError: it is of another version of Assay, or the evidence cannot be read.
        MissingInput: an artifact that it reports on is gone.
    """
    _same_version(report, VERSION)
    folder = root / report.folder
    text = _read(folder / "report.json")
    try:
        stands = json.loads(text)
        stated = [dict(entry) for entry in stands["evidence"]["entries"]]
        verdict = dict(stands["verdict"])
    except (ValueError, KeyError, TypeError) as error:
        raise ManifestError(f"{folder / 'report.json'}: is no report ({type(error).__name__}: {error})") from error
    artifacts = _artifacts(report, root)
    faults = [Fault("report.json", *told) for told in _verdict(report, verdict, root)]
    if faults:
        verdict = _signed(verdict, root)
    section = ReportSection.model_validate_json(json.dumps(report.config), strict=True)
    found = facts(artifacts, verdict, root, rules, section.given, stated)
    expected = json.loads(json_text(found))
    faults += [*json_faults("report.json", stands, expected)] or text_faults("report.json", text, json_text(found))
    faults += text_faults("report.html", _read(folder / "report.html"), page(found))
    faults += _unsealed(report, root)
    files = ["report.json", "report.html"]
    for documents in _documents(report, root):
        texts = document_texts(Evidence(expected, artifacts, root))
        for name, wanted in sorted(texts.items()):
            files.append(name)
            faults += text_faults(name, _read(root / documents.folder / name), wanted)
        faults += _unsealed(documents, root)
    return Checked(report, tuple(files), sum(1 for _ in numbers_of(expected)), tuple(faults))


def rests_on(report: Manifest, root: Path) -> list[Manifest]:
    """Manifests of the report and of its available evidence.

    Raises:
        ManifestError: one is torn or altered.
    """
    try:
        entries = json.loads(_read(root / report.folder / "report.json"))["evidence"]["entries"]
        named = [str(entry["path"]) for entry in entries]
    except (ValueError, KeyError, TypeError):
        named = []  # `recompute` says what is wrong with it
    paths = dict.fromkeys([*(item.path for item in report.inputs), *named])
    inside = [path for path in paths if path.endswith(f"/{FILE_NAME}") and ".." not in path.split("/")]
    return [report, *(read_manifest(root / path) for path in inside if (root / path).is_file())]


def _unsealed(manifest: Manifest, root: Path) -> Iterator[Fault]:
    """The files that are not the ones that their manifest names."""
    for output in manifest.outputs:
        path = root / output.path
        stands = sha256_file(path) if path.is_file() else "nothing"
        if stands != output.sha256:
            yield Fault(path.name, "SHA-256 of the file", stands, output.sha256, f"in {manifest.path}")


def _same_version(manifest: Manifest, version: int) -> None:
    if manifest.version != version:
        raise ManifestError(
            f"{manifest.path}: was written by version {manifest.version} of {manifest.stage}, here is version "
            f"{version}, which cannot compute it again. Write it anew: assay report CONFIG"
        )


def _read(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise ManifestError(f"{path}: cannot be read: {error}. Remove its folder and report again.") from error


def _artifacts(report: Manifest, root: Path) -> dict[str, Manifest]:
    """Artifacts of the report, as they were."""
    found = {}
    for item in report.inputs:
        manifest = read_manifest(root / item.path)
        if manifest.digest != item.digest:
            raise ManifestError(
                f"{item.path}: the report is about digest {item.digest[:16]}…, now it is {manifest.digest[:16]}…: it "
                "was made anew since. Write the report again."
            )
        found[item.stage] = manifest
    return found


def _verdict(report: Manifest, verdict: Mapping[str, Any], root: Path) -> Iterator[tuple[str, str, str]]:
    """Differences between the reported and the signed verdict."""
    wanted, given = report.config.get("verdict_sha256"), sha256_bytes(canonical_json(verdict))
    if given != wanted:
        yield "/verdict", f"a verdict of sha256 {given[:16]}…", f"{str(wanted)[:16]}…, in the report's manifest"
    path = root / verdict_name(verdict)
    if verdict and path.exists() and read_stated_verdict(path) != verdict:
        yield "/verdict", f"{verdict.get('verdict')} of {verdict.get('signed_at')}", f"another one: {path.name}"


def _signed(verdict: Mapping[str, Any], root: Path) -> dict[str, Any]:
    """The signed verdict that a changed one hides, if it is there."""
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


def json_faults(file: str, stands: Any, expected: Any) -> Iterator[Fault]:
    """Differences of two JSON values; 1 is not 1.0."""
    for count, (place, ours, theirs) in enumerate(_unlike(stands, expected, "")):
        if count == MOST_FAULTS:
            return
        ids = ", ".join(origin_of(expected, place)["from"][:4]) if "evidence" in expected else ""
        yield Fault(file, place or "/", _told(ours), _told(theirs), ids)


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


def _told(value: Any) -> str:
    if value is _ABSENT:
        return "nothing"
    told = json.dumps(value, ensure_ascii=False)
    return told if len(told) <= 120 else f"{told[:120]}…"


def text_faults(file: str, stands: str, expected: str) -> list[Fault]:
    """Differences of two texts: HTML by tag and word, others by line."""
    if stands == expected:
        return []
    split = _html_pieces if file.endswith(".html") else _line_pieces
    ours, theirs = split(stands), split(expected)
    if len(ours) != len(theirs):
        pairs = enumerate(zip(ours, theirs, strict=False))
        first = next((index for index, (a, b) in pairs if a != b), min(len(ours), len(theirs)))
        place, a = ours[first] if first < len(ours) else ("at its end", "nothing")
        b = theirs[first][1] if first < len(theirs) else "nothing"
        return [Fault(file, f"{place}, and on from there", _short(a), _short(b))]
    apart = [(a, b) for a, b in zip(ours, theirs, strict=True) if a[1] != b[1]]
    return [Fault(file, place, *_numbers(a, b)) for (_, a), (place, b) in apart[:MOST_FAULTS]]


def _html_pieces(text: str) -> list[tuple[str, str]]:
    """Tags and texts in turn, each with where it stands.

    Section, what heads its row or list.
    """
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
    """The first number that differs, in what surrounds it.

    Where the words differ, the words.
    """
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
