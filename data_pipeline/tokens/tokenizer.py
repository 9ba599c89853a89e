"""Tokenizer stage: train a byte-level BPE, or take over any tokenizer.

Promises: the same documents give the same tokenizer, whatever the number of threads; every text can be encoded, and
comes back unchanged from a tokenizer trained here; text that spells a special token is ordinary text. `tokenizers`
defines the ids; `gigatoken` encodes only where both agree on a sample of documents, on strings that have broken
encoders and on every character that `tokenizers` knows (the *parity gate*), and no text that holds another.

Byte-level BPE: Sennrich, Haddow and Birch 2016 (arXiv:1508.07909) over bytes, with the pre-tokenizer of GPT-2
(Radford et al. 2019), as `tokenizers` trains it, to the byte. `tokenizer.tiktoken` next to it is the same vocabulary in
tiktoken's form, for others to use. Price of training: one pass over the ids and sizes of all documents, one over the
sample; memory as `kernels/gpt2_words.py` and `kernels/bpe_merges.py` say.
"""

from __future__ import annotations

import functools
import json
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import replace
from operator import not_
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
from pydantic import Field, model_validator

from data_pipeline.tokens.chat_template import TEMPLATE_FILE, find_template
from data_pipeline.tokens.encoder import (
    FINAL_SPACE,
    Encoder,
    Engine,
    begun,
    except_matches,
    fast_engine,
    library_engine,
    segments,
)
from data_pipeline.tokens.parity import awkward_strings, compare, every_character, once_each
from data_pipeline.tokens.tiktoken_ranks import SUFFIX, for_gigatoken, from_ranks
from data_pipeline.tokens.training_sample import TrainingSample, choose_sample, sample_texts
from data_pipeline.tokens.unknown_characters import unknown_characters
from data_pipeline.tokens.vocabulary import (
    SENTINEL,
    TokenVocabulary,
    alphabet,
    definition_of_text,
    ranks_text,
    read_vocabulary,
    with_special_tokens,
)
from data_pipeline.tokens.word_counts import count_words
from governance.config import Section
from governance.errors import ConfigError, ManifestError, MissingInput, PipelineError, hub_hint
from governance.file_digests import unchanged
from governance.files import sha256_bytes, sha256_file, write_bytes, write_text
from governance.log import get_logger, progress
from governance.manifest import FILE_NAME, Input, Manifest, describe, read_manifest
from governance.provenance import provenance
from governance.stage import Made, Recipe, Runtime, run_stage
from governance.verified_files import guarded

VERSION = 3
BEGIN = "begin_of_document"  # key of the statistics where documents begin with a token of their own
TOKENIZER_FILE = "tokenizer.json"
RANKS_FILE = "tokenizer.tiktoken"

_UNICODE_FORMS = {"NFC", "NFD", "NFKC", "NFKD"}  # none of them changes ASCII
_PARITY_BYTES = 8 << 10  # bytes of each document on which the engines are compared
_TRAINED_CHARACTERS = 1 << 16  # the trainer sees no longer stretch: a word of a million letters would hold it up


class TokenizerConfig(Section):
    """Tokenizer: trained on the corpus, or read from a file."""

    vocabulary_size: int = Field(default=32_000, ge=257, le=1 << 24)
    """Number of ids, special tokens and the 256 bytes included; fewer result where the sample has too few pairs."""
    sample_bytes: int = Field(default=100_000_000, ge=1)
    """UTF-8 bytes of text to train on, shared among (source, language) in proportion to their bytes."""
    special_tokens: tuple[str, ...] = ("<|endoftext|>",)
    """Ids 0, 1, ...; the first ends every document. Never produced from text."""
    bos: str = Field(default="", exclude_if=not_)
    """The one of `special_tokens` that begins every document, so that the first token of a text is predicted, too;
    empty: none does. It may be the one that ends documents."""
    sentinels: int = Field(default=0, ge=0, le=1000, exclude_if=not_)
    """Special tokens <extra_id_0>, <extra_id_1> ... besides: those that `train.span_corruption` writes for spans."""
    path: str = ""
    """A tokenizer to use instead of training one: a `tokenizer.json` of any kind, or tiktoken's ranks (`.tiktoken`).
    The first of `special_tokens` and `bos` must be special tokens of it; others that it does not have, such as those of
    a chat, are added after its last id."""
    pattern: str = Field(default="", exclude_if=not_)
    """For tiktoken's ranks: "r50k_base", "p50k_base", "cl100k_base", "o200k_base", or the encoding's regular
    expression."""

    @model_validator(mode="after")
    def _check(self) -> TokenizerConfig:
        if not self.special_tokens or "" in self.special_tokens:
            raise ValueError("special_tokens needs at least the end-of-document token, and no empty text")
        if len(set(self.special_tokens)) != len(self.special_tokens):
            raise ValueError("special_tokens names a token twice; name each once")
        if set(self.special_tokens) & set(alphabet()):
            raise ValueError("special_tokens has a single letter, which is a token of its own; name it otherwise")
        if self.bos and self.bos not in self.special_tokens:
            raise ValueError(f"bos is {self.bos!r}, which is not one of special_tokens; add it there")
        if self.vocabulary_size < 256 + len(self.every_special_token):
            raise ValueError(f"vocabulary_size {self.vocabulary_size} has no room for 256 bytes and special_tokens")
        return self

    @property
    def every_special_token(self) -> tuple[str, ...]:
        """Return `special_tokens` and the sentinels."""
        sentinels = (SENTINEL.format(number) for number in range(self.sentinels))
        return (*self.special_tokens, *(name for name in sentinels if name not in self.special_tokens))


def load_encoder(tokenizer: Manifest | Path, root: Path | None = None) -> Encoder:
    """Load a tokenizer from its manifest or a folder.

    Where the stage recorded unequal ids, or the two engines installed here disagree on the awkward strings (and, where
    they are of other versions than its manifest states, on every character), it uses `tokenizers` and logs a warning.
    A folder without a manifest ends documents with its special token of lowest id.

    Raises:
        MissingInput: a file is not there.
        ManifestError: a file cannot be read as a tokenizer.
    """
    if isinstance(tokenizer, Manifest):
        if root is None:
            raise TypeError("a manifest needs the root of its artifacts")
        return _load(root / tokenizer.folder, *_facts(tokenizer))
    folder = tokenizer if tokenizer.is_dir() else tokenizer.parent
    if (folder / FILE_NAME).exists():
        return _load(folder, *_facts(read_manifest(folder / FILE_NAME)))
    return _load(folder, True, False, None, None)


def _facts(tokenizer: Manifest) -> tuple[bool, bool, int, int | None]:
    """Agreement of the engines, whether installed here, end and begin tokens."""
    made, here = tokenizer.run.get("packages", {}), provenance()["packages"]
    same = all(name in made and made[name] == here.get(name) for name in ("gigatoken", "tokenizers"))
    return bool(tokenizer.stats["parity"]), same, int(tokenizer.stats["end_of_document"]), tokenizer.stats.get(BEGIN)


@functools.lru_cache(maxsize=4)
def _load(folder: Path, parity: bool, same_engines: bool, end: int | None, begin: int | None) -> Encoder:
    path = folder / TOKENIZER_FILE
    try:
        text = path.read_text(encoding="utf-8")
    except OSError as error:
        raise MissingInput(f"cannot read {path}: {error.strerror}") from error
    try:
        vocabulary = read_vocabulary(text)
        reference = None if vocabulary.lossless else open_reference(text)
        if end is None:
            if not vocabulary.special:
                raise ValueError("it has no special token to end documents")
            end = min(vocabulary.special.values())
        library, fast = _engines(text, end)
    except ValueError as error:
        raise ManifestError(
            f"{path}: cannot be read as a tokenizer ({error}). Remove its folder and make it again."
        ) from error
    if parity and fast is not None:
        texts = awkward_strings() if same_engines else [*awkward_strings(), *every_character()]
        if unequal := compare(library, fast, texts).unequal:
            get_logger(__name__).warning("%s: gigatoken and tokenizers differ on %r", folder, unequal[0][:40])
            fast = None
    engine, name = (fast, "gigatoken") if parity and fast is not None else (library, "tokenizers")
    if name == "tokenizers":
        get_logger(__name__).warning("%s: encoding with `tokenizers`, which is many times slower", folder)
    run = engine if begin is None else begun(engine, begin)
    encoder = Encoder(len(vocabulary.pieces), end, name, vocabulary.pieces, run, begin)
    if reference is None:
        return encoder
    if "cleanup" in dir(reference.decoder):
        reference.decoder.cleanup = False  # it makes one text of "do n't" and "don't", whose ids differ
    return replace(encoder, decode_text=reference.decode, unknown=vocabulary.unknown)


@functools.lru_cache(maxsize=2)  # `encode` goes on with the engines of the gate, and the words that these have met
def _engines(text: str, end: int) -> tuple[Engine, Engine | None]:
    """The library's engine and the fast one.

    The latter is None where gigatoken cannot read the tokenizer.

    Raises:
        ValueError: the library cannot read it.
    """
    vocabulary, definition, normalise = read_vocabulary(text), definition_of_text(text), None
    reference = open_reference(definition)
    library = library_engine(reference, end, vocabulary.cut_at_spaces)
    if vocabulary.normaliser in _UNICODE_FORMS:  # the two engines know different versions of Unicode
        normalise = reference.normalizer.normalize_str
        definition = json.dumps({**json.loads(definition), "normalizer": None}, ensure_ascii=False)
    known, without_end_rule = for_gigatoken(definition)
    try:
        fast = fast_engine(known, end, library, normalise)
        apart = FINAL_SPACE if without_end_rule else ""
        return library, except_matches(fast, library, unknown_characters(), apart)
    except ValueError as error:
        get_logger(__name__).debug("tokenizer: %s", error)
        return library, None


def open_reference(text: str) -> Any:
    """The tokenizer in `tokenizers`, with special tokens in text as text.

    Raises:
        ValueError: the library cannot read it.
    """
    from tokenizers import Tokenizer

    try:
        reference = Tokenizer.from_str(text)
    except Exception as error:  # the library raises bare Exception
        raise ValueError(str(error)) from error
    reference.encode_special_tokens = True
    reference.no_padding()
    reference.no_truncation()
    return reference


def _train(texts: Iterable[bytes], config: TokenizerConfig) -> str:
    """The `tokenizer.json` of a tokenizer trained on the texts."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers

    from data_pipeline.kernels.bpe_merges import merges

    letters = alphabet()
    names = [*config.every_special_token, *sorted(letters)]
    pieces = [bytes(map(letters.__getitem__, name)) if set(name) <= letters.keys() else b"" for name in names]
    pairs = []
    for left, right, merged in merges(*count_words(texts), pieces, config.vocabulary_size).tolist():
        pairs.append((names[left], names[right]))
        if merged == len(names):
            names.append(names[left] + names[right])
    tokenizer = Tokenizer(models.BPE({name: index for index, name in enumerate(names)}, pairs))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=True)
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.add_special_tokens(list(config.every_special_token))
    return str(tokenizer.to_str())


def _stretches(texts: Iterable[str], size: int) -> Iterator[bytes]:
    with progress("tokenizer", size / 1e6, "MB") as advance:
        for text in texts:
            data = text.encode("utf-8")
            if len(data) <= _TRAINED_CHARACTERS:
                yield data
            else:
                for part in segments(text):
                    for start in range(0, len(part), _TRAINED_CHARACTERS):
                        yield part[start : start + _TRAINED_CHARACTERS].encode("utf-8")
            advance(len(data) / 1e6)


def take_over(path: Path, config: TokenizerConfig) -> tuple[str, TokenVocabulary]:
    """The `tokenizer.json` of the configured file, and its vocabulary.

    It is the file's own text, unless that holds ranks or needs further special tokens.

    Raises:
        MissingInput: it cannot be read.
        ConfigError: it is not a tokenizer, cannot encode, or does not have the token that ends or begins documents.
    """
    try:
        if path.is_dir():
            path = path / TOKENIZER_FILE
        if path.suffix == SUFFIX:
            text = from_ranks(path.read_bytes(), config.pattern, config.every_special_token)
        elif config.pattern:
            raise ValueError("pattern is for tiktoken's ranks (*.tiktoken); leave it out")
        elif path.suffix == ".model":
            raise ValueError("is a model of SentencePiece, which AutoTokenizer of `transformers` converts")
        else:
            text = path.read_text(encoding="utf-8")
        vocabulary = read_vocabulary(text)
        for name, what in ((config.special_tokens[0], "the first of special_tokens"), (config.bos, "bos")):
            if name and name not in vocabulary.special:
                raise ValueError(
                    f"{name!r}, {what}, is not among its special tokens "
                    f"{sorted(vocabulary.special, key=lambda name: vocabulary.special[name])[:8]}"
                )
        if further := [name for name in config.every_special_token if name not in vocabulary.special]:
            text = with_special_tokens(text, further)
            vocabulary = read_vocabulary(text)
            get_logger(__name__).info("tokenizer: added the special tokens %s to those of %s", further, path)
        _check_usable(text, vocabulary)
    except OSError as error:
        raise MissingInput(
            f"data.tokenizer.path: cannot read {path}: {error.strerror}. Paths start at the folder of the "
            f"run's file.{hub_hint(path)}"
        ) from error
    except ValueError as error:
        raise ConfigError(
            f"data.tokenizer.path = {config.path!r}: {error}. Give a tokenizer.json that `tokenizers` loads, with its "
            f"own token for the end of documents first in special_tokens, or leave path out to train one."
        ) from error
    return text, vocabulary


def _check_usable(text: str, vocabulary: TokenVocabulary) -> None:
    """Raise ValueError unless the library encodes and numbers as the file."""
    reference = open_reference(text)
    for name, index in vocabulary.special.items():
        if reference.token_to_id(name) != index:
            raise ValueError(
                f"its special token {name!r} has the id {index} in the file, and {reference.token_to_id(name)} once it "
                f"is loaded"
            )
    try:
        ids, ends = _engines(text, 0)[0](pa.array(awkward_strings(), pa.large_string()))
    except Exception as error:  # the library raises bare Exception
        raise ValueError(f"`tokenizers` cannot encode with it: {error}") from error
    if int(ids.max(initial=0)) >= len(vocabulary.pieces):
        raise ValueError(f"it gives the id {ids.max()}, which is not in its vocabulary")
    if vocabulary.unknown is not None and vocabulary.unknown in np.delete(ids, ends[1:] - 1):
        get_logger(__name__).warning(
            "tokenizer: a tokenizer of %s loses the characters and words that its vocabulary lacks (id %d); a document "
            "with one fails the round trip, which the gate tokens.round_trip requires of every document checked",
            vocabulary.kind, vocabulary.unknown,
        )  # fmt: skip


def train_tokenizer(documents: Manifest, config: TokenizerConfig, runtime: Runtime, folder: Path = Path()) -> Manifest:
    """Train a byte-level BPE on a sample, or adopt `config.path`.

    Relative paths start at `folder`. The artifact has tokenizer.json and, where the vocabulary has that form,
    tokenizer.tiktoken; and the chat template next to `config.path`, which an export carries on.

    Raises:
        PipelineError: there are no documents, or none with text.
        MissingInput: the file at `config.path` is missing.
        ConfigError: the file at `config.path` is not a tokenizer of the supported kind.
    """
    inputs, given, template = [documents.as_input()], None, ""
    if config.path:
        source = folder / config.path
        source = source / TOKENIZER_FILE if source.is_dir() else source
        digest = sha256_file(source) if source.is_file() else ""  # without it, `take_over` says what is missing
        with unchanged([(source, digest)] if digest else []):
            given = take_over(source, config)
        inputs.append(Input(stage="file", digest=digest, path=source.name))
        if template := find_template(source):
            inputs.append(Input(stage="file", digest=sha256_bytes(template.encode()), path=TEMPLATE_FILE))
        config = config.model_copy(update={"path": source.name})  # its folder decides nothing

    def make(target: Path) -> Made:
        paths = documents.files("documents", runtime.root)
        sample = choose_sample(paths, config.sample_bytes)
        if not len(sample.places):
            raise PipelineError(
                f"tokenizer: no documents with text in {documents.path} ({sample.documents} documents). "
                f"Look at what the earlier stages removed: assay data show CONFIG."
            )
        if given is None:
            size = int(sample.places["size"].sum())
            text = _train(_stretches(sample_texts(paths, sample.places), size), config)
            vocabulary = read_vocabulary(text)
            if len(vocabulary.pieces) < config.vocabulary_size:
                get_logger(__name__).warning(
                    "tokenizer: the sample gave %d tokens, fewer than vocabulary_size %d",
                    len(vocabulary.pieces), config.vocabulary_size,
                )  # fmt: skip
        else:
            text, vocabulary = given
        write_text(target / TOKENIZER_FILE, text)
        if (ranks := ranks_text(text)) is not None:
            write_bytes(target / RANKS_FILE, ranks)
        if template:
            write_text(target / TEMPLATE_FILE, template)
        end = vocabulary.special[config.special_tokens[0]]
        files = [target / name for name in (TOKENIZER_FILE, RANKS_FILE, TEMPLATE_FILE)]
        written = [path for path in files if path.exists()]
        return Made([describe(path, runtime.root) for path in written], {
            "documents": sample.documents,
            "sample_documents": len(sample.places),
            "sample_bytes": int(sample.places["size"].sum()),
            "sample_bytes_by_source": sample.bytes_by_source,
            "trained": int(given is None),
            **({} if given is None else {
                "kind": vocabulary.kind,
                "round_trip": "bytes" if vocabulary.lossless else "ids",
            }),
            **({"special_tokens": vocabulary.special} if given is not None or config.sentinels else {}),
            "vocabulary_size": len(vocabulary.pieces),
            "end_of_document": end,
            **({BEGIN: vocabulary.special[config.bos]} if config.bos else {}),
            **_parity(text, vocabulary, end, paths, sample),
        })  # fmt: skip

    body = guarded(make, documents.listed("documents"), runtime.root)
    return run_stage(Recipe("tokenizer", VERSION, config), inputs, runtime, body, alone=True)


def _parity(
    text: str, vocabulary: TokenVocabulary, end: int, paths: Sequence[Path], sample: TrainingSample
) -> dict[str, Any]:
    """Compare the engines on sample, awkward strings and all characters."""
    log = get_logger(__name__)
    library, fast = _engines(text, end)
    reference = once_each(library, vocabulary.pieces) if vocabulary.cut_at_spaces else library
    of_sample = compare(reference, fast or library, sample_texts(paths, sample.parity, _PARITY_BYTES))
    unequal = list(of_sample.unequal)
    if fast is None:
        log.warning("tokenizer: gigatoken cannot read a tokenizer of %s; `tokenizers` will encode", vocabulary.kind)
    else:
        unequal += compare(library, fast, [*awkward_strings(), *every_character()]).unequal
    if unequal:
        log.warning(
            "tokenizer: gigatoken and tokenizers differ on %d texts, the first %r; tokenizers will encode",
            len(unequal), unequal[0][:60],
        )  # fmt: skip
    return {
        "parity": fast is not None and not unequal,
        "parity_documents": len(sample.parity),
        "parity_unequal": len(unequal),
        "parity_bytes": of_sample.bytes,
        "parity_tokens": of_sample.tokens,
    }
