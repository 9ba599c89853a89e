"""Text traced to its sources: verbatim spans, documents, steps."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from assay.impact import steps_of_each
from assay.receipts.receipt_requests import own_journal, takedowns, tokens_of
from data_pipeline.normalised_text import normalise
from data_pipeline.text_index.index_stage import STAGE, VERSION, TextIndexConfig, text_index
from data_pipeline.text_index.search import Holder, TextIndex, find_spans, holders_of, open_index, read_listed
from data_pipeline.tokens.token_shards import document_identity
from data_pipeline.trace import documents_of
from governance.errors import AlteredFile, ConfigError, MissingInput
from governance.file_digests import Digests
from governance.gate.verdict import Keyring
from governance.hooks import Hooks
from governance.lineage.attest import KeySigner, refuse_unstated
from governance.manifest import FILE_NAME, Manifest, Output, output_fault, present, read_manifest
from governance.signing.journal_lines import JournalEntry
from governance.stage import Runtime, read_artifact, root_of
from governance.verified_files import file_state, require_unchanged
from pretrain.checkpoint.format import identity_of, open_checkpoint

_LONGEST = 1_000_000
_MAKE = "Make it with: assay data index CONFIG"


@dataclass(frozen=True)
class SpanSource:
    """A document that holds a span."""

    id: str
    source: str
    url: str
    licence: str
    copies: int
    """Copies of the document in the training split."""
    held_out: int
    """Copies of the document in the validation split."""
    occurrences: int
    """Occurrences of the span in one copy."""
    steps: tuple[int, ...] | None
    """Steps at which the checkpoint read the document, one for each row; None without a checkpoint."""
    taken_down: str
    """The takedown that removed it, in words; "" without one."""


@dataclass(frozen=True)
class TracedSpan:
    """A longest verbatim span of the text."""

    start: int
    end: int
    """In characters of the normalised text, exclusive."""
    text: str
    documents: int
    occurrences: int
    """Over all documents, a copy of a document not counted again."""
    sources: tuple[SpanSource, ...]
    """The first documents, in the order of the corpus."""


@dataclass(frozen=True)
class TracedText:
    """A text with its verbatim spans, in order."""

    text: str
    """Normalised as the corpus is."""
    least: int
    """Characters from which a span counts."""
    spans: tuple[TracedSpan, ...]
    corpus: str
    """Digest of the token corpus."""
    index: str
    """Digest of the index."""
    corpus_documents: int
    checkpoint: str
    """Digest, or "" without a checkpoint."""
    step: int | None

    @property
    def covered(self) -> int:
        """Characters that are in some span."""
        ends = [0, *(span.end for span in self.spans)]
        return sum(span.end - max(span.start, before) for span, before in zip(self.spans, ends, strict=False))


def make_index(tokens: Manifest, config: TextIndexConfig, runtime: Runtime) -> Manifest:
    """Find or make the index of a token corpus.

    Raises:
        MissingInput: the documents that were encoded are gone.
    """
    documents, problem = documents_of(tokens, runtime.root)
    if documents is None:
        raise MissingInput(f"{STAGE}: {problem}")
    return text_index(tokens, documents, config, runtime)


def find_index(tokens: Manifest, root: Path) -> Manifest | None:
    """The newest readable index of a token corpus.

    Its shards may have any size; an older version's is not readable.
    """
    paths = sorted(root.glob(f"{STAGE}/*/{FILE_NAME}"), key=lambda path: -path.stat().st_mtime)
    found = (one for one in map(read_manifest, paths) if one.version == VERSION)
    return next((one for one in found if tokens.as_input() in one.inputs), None)


def open_sound_index(made: Manifest, root: Path, hooks: Hooks) -> TextIndex:
    """Open an index whose files have the digests of its manifest.

    A file is read for its digest once, and again only after a change (`governance/file_digests.py`).

    Raises:
        AlteredFile: a file was cut, altered or removed.
    """
    mend = f"The index was cut or altered; nothing was traced. Remove {root / made.folder}. {_MAKE}"
    _refuse_altered(made, made.outputs, root, hooks, mend)
    return open_index(made, root)


def _refuse_altered(made: Manifest, outputs: Iterable[Output], root: Path, hooks: Hooks, mend: str) -> None:
    digests = Digests(Runtime(root, hooks=hooks))
    for output in outputs:
        whole = present(made.model_copy(update={"outputs": (output,)}), root)
        if not whole or digests.of(root / output.path) != output.sha256:
            raise AlteredFile(f"{root / output.path}: {output_fault(output, root)}. {mend}")
    digests.save()


def read_text(text: str, least: int) -> str:
    """The text as every document of a corpus is normalised.

    Raises:
        ConfigError: it is empty, shorter than a span, too long, or not Unicode.
    """
    if any("\ud800" <= letter <= "\udfff" for letter in text):  # bytes of a command line that are not UTF-8
        raise ConfigError("the text is not UTF-8. Convert it, and give it through a pipe: assay trace-text -")
    found = normalise(text)
    if not found.strip():
        raise ConfigError("the text is empty. Give a text, or - to read it from standard input")
    if len(found) < least:
        raise ConfigError(
            f"the text has {len(found)} characters, and a span counts from {least}. Give a longer text, or "
            f"--min-characters {len(found)}"
        )
    if len(found) > _LONGEST:
        raise ConfigError(f"the text has {len(found):,} characters; at most {_LONGEST:,} are traced. Give it in parts")
    return found


def trace_text(
    text: str, checkpoint: Path | None, corpus: Path | None, keyring: Keyring, least: int, most: int
) -> TracedText:
    """Trace a text to the documents of a corpus.

    The corpus is a checkpoint's, or `corpus`. A span counts from `least` characters on; `most` documents of each are
    listed.

    Raises:
        ConfigError: there is no text, or `corpus` is not a token corpus.
        MissingInput: the checkpoint, its token corpus or the index is not there.
        GateClosed: the journal was cut, or does not state the checkpoint or the index.
        AlteredFile: a file of the index, or a shard that gives the steps, is not as it was made.
    """
    text = read_text(text, least)
    model, tokens, root = _subject(checkpoint, corpus)
    made = find_index(tokens, root)
    if made is None:
        others = len(list(root.glob(f"{STAGE}/*/{FILE_NAME}")))
        words = f"; its {others} index(es) are of other corpora or versions of Assay" if others else ""
        raise MissingInput(f"{root}: has no index of the texts of {tokens.folder}{words}. {_MAKE}")
    journal = own_journal(model or made, keyring, root)
    refuse_unstated(made, keyring, root)
    hooks = Hooks(signer=KeySigner(keyring))
    packed = [read_manifest(root / item.path) for item in model.inputs[:1] if item.stage == "pack"] if model else []
    counted = [(one, [*one.listed("train"), *one.listed("validation")]) for one in (tokens, *packed) if model]
    read = [*made.outputs, *(output for _, shards in counted for output in shards)]
    before = [file_state(root / output.path) for output in read if (root / output.path).exists()]
    index = open_sound_index(made, root, hooks)
    for one, shards in counted:
        _refuse_altered(one, shards, root, hooks, "The steps rest on it; nothing was traced. Put it back")
    spans = find_spans(index, text, least)
    held = [holders_of(index, text[start:end], most) for start, end in spans]
    shown = iter(read_listed(index, [one for found in held for one in found.first]))
    listed = [[(one, next(shown)) for one in found.first] for found in held]
    facts = _reads([row["id"] for rows in listed for _, row in rows], model, tokens, root, journal.verified())
    for output, state in zip(read, before, strict=True):
        require_unchanged(output, root / output.path, state)
    return TracedText(
        text, least,
        tuple(
            TracedSpan(
                start, end, text[start:end], found.documents, found.occurrences,
                tuple(_source(holder, row, facts) for holder, row in rows),
            )
            for (start, end), found, rows in zip(spans, held, listed, strict=True)
        ),
        tokens.digest, made.digest, made.stats["documents"], model.digest if model is not None else "",
        identity_of(model).step if model is not None else None,
    )  # fmt: skip


def _subject(checkpoint: Path | None, corpus: Path | None) -> tuple[Manifest | None, Manifest, Path]:
    """Checkpoint, token corpus and root."""
    if checkpoint is not None:
        model, root = open_checkpoint(checkpoint), root_of(checkpoint)
        return model, tokens_of(model, root), root
    if corpus is None:
        raise ConfigError("what was trained on? Give a checkpoint's folder (--checkpoint) or a corpus (--corpus)")
    tokens, root = read_artifact(corpus), root_of(corpus)
    if tokens.stage != "encode":
        raise ConfigError(
            f"--corpus {corpus}: is an artifact of {tokens.stage!r}. Give the folder of a token corpus, as "
            "ROOT/encode/KEY"
        )
    return None, tokens, root


def _reads(
    ids: Sequence[str], model: Manifest | None, tokens: Manifest, root: Path, entries: Sequence[JournalEntry]
) -> Mapping[str, tuple[tuple[int, ...], str]]:
    """Steps and takedown of each document; empty without a checkpoint."""
    if model is None:
        return {}
    names = list(dict.fromkeys(ids))
    requests = [frozenset({document_identity(name)}) for name in names]
    steps = steps_of_each(requests, model, tokens, root)
    gone = [next(takedowns(one, model, entries), "") for one in requests]
    return {name: (tuple(read), words) for name, read, words in zip(names, steps, gone, strict=True)}


def _source(holder: Holder, row: Mapping[str, Any], facts: Mapping[str, tuple[tuple[int, ...], str]]) -> SpanSource:
    steps, gone = facts.get(row["id"], (None, ""))
    return SpanSource(**row, occurrences=holder.occurrences, steps=steps, taken_down=gone)
