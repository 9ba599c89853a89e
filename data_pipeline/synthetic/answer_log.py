"""Durable answers of an unfinished source, and of earlier artifacts.

Each answer is appended to `<root>/synthetic/<key>/answers.log` as it comes: one signed line, on the disk before the
next request is counted as done. A kill tears at most the last line. A request that any such log or any artifact below
the root has an answer for is not sent again, whatever the other settings; refusals are sent again.

The answers of an artifact count by a signed note, `<root>/synthetic/records/<key>.json`, which lists its files: an
account without the key can plant no answer.
"""

from __future__ import annotations

import json
from collections.abc import Collection, Iterator
from dataclasses import dataclass
from pathlib import Path

from data_pipeline.readers.file_types.teacher_answers import Answer
from governance.config import canonical_json
from governance.errors import MissingInput
from governance.files import append_line, sha256_file
from governance.log import get_logger
from governance.manifest import Output
from governance.signed_notes import NoteSigner, read_note, write_note

STAGE, LOG, LOCK = "synthetic", "answers.log", "synthetic/requests.lock"


@dataclass(frozen=True, slots=True)
class Place:
    """Location of an answer's line."""

    path: Path
    offset: int
    size: int
    signed: bool


def append(log: Path, answer: Answer, signer: NoteSigner) -> None:
    """Put an answer on the disk."""
    written = {"request": answer.request, "note": signer.sign(_name(answer.request), vars(answer))}
    append_line(log, canonical_json(written).decode("utf-8"), durable=True)


def known_answers(
    root: Path, signer: NoteSigner, wanted: Collection[str], refusals: Path | None = None
) -> dict[str, Place]:
    """Request -> place of its answer, for `wanted` requests with one.

    Refusals count only if they are in the log `refusals`; there the latest one.
    """
    found: dict[str, Place] = {}
    refused: dict[str, Place] = {}
    logs = [(log, True) for log in sorted(root.glob(f"{STAGE}/*/{LOG}"))]
    for path, signed in (*_of_artifacts(root, signer), *logs):
        altered = offset = 0
        with path.open("rb") as stream:
            for line in stream:
                answer = _opened(line, signed, signer)
                altered += answer is None
                if answer is not None and answer.request in wanted:
                    place = Place(path, offset, len(line), signed)
                    if answer.status == 200:
                        found.setdefault(answer.request, place)
                    elif path == refusals:
                        refused[answer.request] = place
                offset += len(line)
        if altered:
            get_logger(__name__).warning(
                "%s: %d line(s) are torn, or no trusted key signed them; their requests are sent again", path, altered
            )
    return refused | found


def answer_at(place: Place, signer: NoteSigner) -> Answer:
    """The answer at a place.

    Raises:
        MissingInput: its file was altered meanwhile.
    """
    with place.path.open("rb") as stream:
        stream.seek(place.offset)
        answer = _opened(stream.read(place.size), place.signed, signer)
    if answer is None:
        raise MissingInput(f"{place.path}: was altered while it was read. Run the same command again.")
    return answer


def note_artifact(key: str, outputs: Collection[Output], root: Path, signer: NoteSigner) -> Path:
    """Leave the signed note of an artifact's files; return its path."""
    path = root / STAGE / "records" / f"{key}.json"
    write_note(path, {"outputs": [output.model_dump(mode="json") for output in outputs]}, root, signer)
    return path


def _of_artifacts(root: Path, signer: NoteSigner) -> Iterator[tuple[Path, bool]]:
    for note in sorted(root.glob(f"{STAGE}/records/*.json")):
        content = read_note(note, root, signer) or {}
        for values in content.get("outputs", ()):
            output = Output(**values)
            path = root / output.path
            if path.is_file() and path.stat().st_size == output.bytes and sha256_file(path) == output.sha256:
                yield path, False


def _name(request: str) -> str:
    """Signed name of a line, so that it answers no other request."""
    return f"{STAGE}/answers/{request}"


def _opened(line: bytes, signed: bool, signer: NoteSigner) -> Answer | None:
    """The answer of a line; None if torn, altered or foreign."""
    try:
        written = json.loads(line)
        content = signer.open(_name(written["request"]), written["note"]) if signed else written
        answer = Answer(**content)
    except (ValueError, TypeError, KeyError, RecursionError):
        return None
    return answer if answer.request == written["request"] else None
