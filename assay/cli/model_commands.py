"""Handlers of the commands that generate, translate and interpret."""

from __future__ import annotations

import functools
import json
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from assay.cli.output import say
from assay.cli.run_commands import Arguments, averaged_with, checkpoint_of, load_corpus
from assay.config import LoadedRun
from assay.corpus_gate import require_corpus
from assay.training_recipe import training_rows
from data_pipeline.readers.file_types.pair_text import prompt_of
from data_pipeline.tokens.encoder import Encoder
from data_pipeline.tokens.tokenizer import load_encoder
from governance.config import canonical_json
from governance.errors import ConfigError, MissingInput
from governance.files import sha256_bytes, write_text
from governance.log import get_logger, progress
from governance.manifest import Manifest
from governance.stage import Runtime
from pretrain.checkpoint.format import identity_of, read_checkpoint
from pretrain.data.dataset import Rows, open_rows
from pretrain.data.tokenizer_check import refuse_foreign_tokenizer
from pretrain.inference.loaded_model import LoadedModel, load_model
from pretrain.inference.next_token import Sampling


@dataclass(frozen=True)
class OpenedCheckpoint:
    """A verified checkpoint with the run that it is used under."""

    loaded: LoadedRun
    runtime: Runtime
    artifacts: Mapping[str, Manifest]
    manifest: Manifest
    origin: Mapping[str, Any]
    encoder: Encoder
    """The run's tokenizer, which is that of the checkpoint's training."""
    context: int
    """Most tokens of a text."""


def open_checkpoint(arguments: Arguments, role: str = "") -> OpenedCheckpoint:
    """The checkpoint that a command names, verified as `assay evaluate` does.

    `role` names token shards that the command reads, too.
    """
    loaded, runtime, artifacts = load_corpus(arguments)
    require_corpus(loaded, artifacts, runtime, role)  # the tokenizer is behind it
    checkpoint, origin = checkpoint_of(arguments, loaded, artifacts, runtime)
    manifest = read_checkpoint(checkpoint, runtime.root)
    refuse_foreign_tokenizer(manifest, artifacts["tokenizer"], runtime.root)
    encoder = load_encoder(artifacts["tokenizer"], runtime.root)
    context = identity_of(manifest).recipe.train.sequence_length
    return OpenedCheckpoint(loaded, runtime, artifacts, manifest, origin, encoder, context)


def generate(arguments: Arguments) -> None:
    """Continue prompts by a checkpoint, with speed and energy."""
    from pretrain.inference.generation import generate as continue_prompts
    from pretrain.inference.generation import refuse_prompts

    sampling = Sampling(arguments.temperature, arguments.top_p, arguments.seed)
    if sampling.top_p < 1 and not sampling.temperature:
        get_logger(__name__).warning(
            "--top-p %g has no effect at temperature 0, which takes the likeliest token; add --temperature 1",
            sampling.top_p,
        )
    if not all(arguments.stops):
        raise ConfigError("--stop: is empty, so every text would end before it begins; give a text or leave it out")
    prompts = prompts_of(arguments.prompts, arguments.prompts_file)
    opened = open_checkpoint(arguments)
    encoder, engine = opened.encoder, opened.loaded.config.engine
    ids = [encoder.encode(prompt).tolist() for prompt in prompts]
    refuse_prompts(ids, opened.context)
    others = averaged_with(opened.manifest, arguments, opened.loaded, opened.runtime.root)

    def stops(number: int, made: Sequence[int]) -> bool:
        return bool(arguments.stops) and any(map(encoder.decode_after(ids[number], made).__contains__, arguments.stops))

    rows, most = engine.micro_batch_size, arguments.max_tokens
    with opened.runtime.hooks.meter("generate") as energy:
        model = load_model(opened.manifest, engine, opened.runtime.root, others)
        begun = time.monotonic()
        with progress("generate", len(prompts) * most, "tokens") as advance:
            continuations = continue_prompts(model, ids, encoder.end_of_document, most, sampling, rows, advance, stops)
        seconds = time.monotonic() - begun
    texts: list[dict[str, Any]] = [
        {
            "prompt": prompt,
            "text": before_stop(encoder.decode_after(given, one.ids), arguments.stops),
            "prompt_tokens": len(given),
            "tokens": len(one.ids),
            "finish": one.finish,
        }
        for prompt, given, one in zip(prompts, ids, continuations, strict=True)
    ]
    made = sum(row["tokens"] for row in texts)
    for number, row in enumerate(texts, 1):
        title = f"--- prompt {number}: {row['tokens']} tokens, {_FINISHES[row['finish']]}\n" if len(texts) > 1 else ""
        say(f"{title}{row['prompt']}{row['text']}", generations=[row])
    get_logger(__name__).info(
        "%d tokens in %.1f s, %.1f tokens/s, energy %s, with the loading of the model", made, seconds,
        made / max(seconds, 1e-9), _energy(energy),
    )  # fmt: skip
    if arguments.json:  # as values; a person reads a message
        say(
            "", checkpoint=opened.manifest.digest, averaged=[one.digest for one in others], origin=opened.origin,
            sampling=asdict(sampling), tokens=made, seconds=seconds, tokens_per_second=made / max(seconds, 1e-9),
            energy=energy,
        )  # fmt: skip


_ROWS = 64  # validation rows that head pruning reads


def interpret(arguments: Arguments) -> None:
    """Show how a checkpoint reads texts, and the importance of its heads.

    The values are stated in the journal by their digest.

    Raises:
        ConfigError: there is neither a text nor `--prune-heads`, a text is empty or not Unicode, or `--rows` has
            no `--prune-heads`.
    """
    from pretrain.interpretability.interpretation import refuse_texts
    from pretrain.interpretability.interpretation_page import interpretation_lines, interpretation_page

    texts, prunes = arguments.texts, arguments.prune_heads
    for number, text in enumerate(texts, 1):
        if not text:
            raise ConfigError(
                f"text {number}: is empty, so there is nothing to explain; give a text of a token or more"
            )
        if not _is_unicode(text):
            raise ConfigError(f"text {number}: is not UTF-8; convert it")
    if not texts and not prunes:
        raise ConfigError("no text: give texts after the checkpoint, or --prune-heads for the importance of heads")
    if arguments.rows and not prunes:
        raise ConfigError("--rows requires --prune-heads, which reads validation rows; a text needs none")
    opened = open_checkpoint(arguments, "validation" if prunes else "")
    manifest = opened.manifest
    ids = [opened.encoder.encode(text).tolist() for text in texts]
    refuse_texts(ids, opened.context)
    tokens = training_rows(opened.artifacts)
    rows = open_rows(tokens, "validation", opened.runtime.root, opened.context) if prunes else None
    with opened.runtime.hooks.meter("interpret") as energy:
        found = _interpreted(opened, texts, ids, rows, arguments.rows or _ROWS)
    identity = identity_of(manifest)
    values = {
        "checkpoint": manifest.digest, "step": identity.step, "layers": identity.recipe.model.num_hidden_layers,
        "attention_heads": identity.recipe.model.num_attention_heads, **found,
    }  # fmt: skip
    made_from = [
        manifest.as_input(),
        opened.artifacts["tokenizer"].as_input(),
        *([tokens.as_input()] if prunes else []),
    ]
    subjects = {f"interpretation/{manifest.digest[:16]}": sha256_bytes(canonical_json(values))}
    for line in interpretation_lines(values):
        say(line)
    get_logger(__name__).info("energy %s, with the loading of the model", _energy(energy))
    if arguments.json:  # as values; a person reads lines
        say("", **values, origin=opened.origin, energy=energy)
    if arguments.html:
        page = interpretation_page({**values, "energy": energy})
        write_text(arguments.html, page)
        subjects[f"interpretation/{arguments.html.name}"] = sha256_bytes(page.encode("utf-8"))
        say(f"{arguments.html}: the maps and tables as a page", page=arguments.html)
    opened.loaded.journal(opened.runtime.root).state("interpretation", subjects, made_from, origin=opened.origin)


def _interpreted(
    opened: OpenedCheckpoint, texts: Sequence[str], ids: Sequence[Sequence[int]], rows: Rows | None, most_rows: int
) -> dict[str, Any]:
    """Values of all texts and, with `rows`, of removed heads."""
    from pretrain.interpretability.head_pruning import passed_rows, prune_heads
    from pretrain.interpretability.interpretation import induction_figures
    from pretrain.interpretability.interpretation import interpret as interpret_text

    encoder, engine = opened.encoder, opened.loaded.config.engine
    model: LoadedModel = load_model(opened.manifest, engine, opened.runtime.root)
    model.decoder.requires_grad_(False)
    special = frozenset(one for one in range(model.vocabulary_size) if not encoder.is_text(one))
    interpreted = []
    with progress("interpret", len(texts), "texts") as advance:
        for text, given in zip(texts, ids, strict=True):
            name, end, size = _namer(encoder, given), encoder.end_of_document, engine.micro_batch_size
            measured = interpret_text(model, given, name, end, size, lambda points: advance(0, note="attribution"))
            interpreted.append({"text": text, **measured})
            advance(1)
    values: dict[str, Any] = {
        "texts": interpreted,
        "induction": induction_figures(model, special, encoder.begin_of_document),
    }
    if rows is not None:
        with progress("prune heads", passed_rows(model, rows, most_rows), "row passes") as advance:
            values["head_pruning"] = asdict(prune_heads(model, rows, most_rows, engine.micro_batch_size, advance))
    return values


def _namer(encoder: Encoder, given: Sequence[int]) -> Callable[[int], str]:
    """Text of a token within a text; special tokens are named."""
    special = {encoder.end_of_document: "[end of document]"}
    if encoder.begin_of_document is not None:
        special |= {encoder.begin_of_document: "[begin of document]"}

    @functools.cache
    def name(token: int) -> str:
        if not encoder.is_text(token):
            return special.get(token, f"[special token {token}]")
        return encoder.decode_after(given[:1], [token])

    return name


def translate(arguments: Arguments) -> None:
    """Translate texts by beam search."""
    from pretrain.inference.beam_search import Beam, Hypothesis, open_translator
    from pretrain.inference.generation import refuse_full

    if not 0 <= arguments.alpha < 100:
        raise ConfigError(f"--alpha {arguments.alpha:g}: must be 0 or more; the paper uses 0.6")
    texts = prompts_of(arguments.texts, arguments.file, "--file", blank=True)
    references = references_of(arguments.reference, arguments.file, texts, arguments.texts)
    opened = open_checkpoint(arguments)
    encoder, root = opened.encoder, opened.runtime.root
    if not identity_of(opened.manifest).recipe.model.encoder_layers:
        raise ConfigError(f"{opened.manifest.folder}: has no encoder; continue texts with: assay generate")
    sources = [encoder.encode(prompt_of(text)).tolist() for text in texts if text.strip()]
    refuse_full("source", sources, opened.context)
    beam = Beam(arguments.beam, arguments.alpha)
    checkpoints = [opened.manifest, *averaged_with(opened.manifest, arguments, opened.loaded, root)]
    rows: list[dict[str, Any]] = []
    with opened.runtime.hooks.meter("translate") as energy:
        translator = open_translator(checkpoints, opened.loaded.config.engine, root)
        with progress("translate", len(sources), "texts") as advance:
            translations = zip(sources, translator(sources, encoder.end_of_document, beam, advance), strict=True)
            for text in texts:  # a blank line stays one, so that line n is the translation of line n
                source, found = next(translations) if text.strip() else ([], Hypothesis((), 0.0))
                written = encoder.decode_after(source, found.ids)
                rows.append({"source": text, "text": written, "score": found.score})
                say(written, translations=rows[-1:])
    values: dict[str, Any] = {
        "checkpoints": [checkpoint.digest for checkpoint in checkpoints],
        "steps": [identity_of(checkpoint).step for checkpoint in checkpoints],
        "beam": arguments.beam, "alpha": arguments.alpha,
    }  # fmt: skip
    if references is not None:
        values |= _scores([row["text"] for row in rows], references, arguments.tokenizer)
        subject = {
            f"translation/{opened.manifest.digest[:16]}": sha256_bytes(
                canonical_json({**values, "translations": rows, "references": references})
            )
        }
        made_from = [*(checkpoint.as_input() for checkpoint in checkpoints), opened.artifacts["tokenizer"].as_input()]
        opened.loaded.journal(root).state("evaluation", subject, made_from, **values, origin=opened.origin)
    get_logger(__name__).info("energy %s, with the loading of the model", _energy(energy))
    if arguments.json:  # as values; a person reads a message
        say("", checkpoint=opened.manifest.digest, origin=opened.origin, **values, energy=energy)


def _scores(translations: Sequence[str], references: Sequence[str], tokenizer: str) -> dict[str, Any]:
    """BLEU and chrF, logged and as values."""
    from pretrain.inference.translation_scores import corpus_scores

    scores = corpus_scores(translations, references, tokenizer)
    for name, title in (("bleu", "BLEU"), ("chrf", "chrF")):
        one = scores[name]
        get_logger(__name__).info(
            "%s %.2f, 95 %% interval %.2f to %.2f, %d segments, %s",
            title, one.score, one.lower, one.upper, len(references), one.signature,
        )  # fmt: skip
    return {"segments": len(references), "scores": {name: asdict(one) for name, one in scores.items()}}


_FINISHES = {
    "end": "ended by the model",
    "stop": "ended by --stop",
    "length": "cut at --max-tokens",
    "context": "the context is full",
}


def _energy(energy: dict[str, Any]) -> str:
    return "unknown" if energy["joules"] is None else f"{energy['joules']:.3g} J ({energy['method']})"


def before_stop(text: str, stops: Sequence[str]) -> str:
    """The text up to where the first of `stops` begins."""
    return text[: min((place for stop in stops if (place := text.find(stop)) >= 0), default=len(text))]


def prompts_of(words: Sequence[str], file: Path | None, option: str = "--prompts", *, blank: bool = False) -> list[str]:
    """Prompts of the command line, then those of a file.

    `option` names it. Its blank lines are left out unless they are wanted (`blank`).

    Raises:
        ConfigError: there is no prompt, or one is not text.
        MissingInput: the file cannot be read.
    """
    prompts = list(words)
    for number, word in enumerate(prompts, 1):
        if not _is_unicode(word):
            raise ConfigError(f"prompt {number}: is not UTF-8; convert it, or write it to a file for {option} FILE")
    if file is not None:
        prompts += _read(file, option, blank)
    if not any(map(str.strip, prompts)) if blank else not prompts:
        empty = f" ({file} holds none)" if file is not None else ""
        raise ConfigError(f"no prompt{empty}: give texts after the checkpoint, or a file with {option} FILE")
    return prompts


def references_of(
    reference: Path | None, file: Path | None, texts: Sequence[str], words: Sequence[str]
) -> list[str] | None:
    """Lines of a file of references; None without it.

    Line n is the translation of text n of `file`.

    Raises:
        ConfigError: there is no file of texts, there are texts besides it, a line of either is empty, or the
            numbers of lines differ.
        MissingInput: a file cannot be read.
    """
    if reference is None:
        return None
    if file is None or words:
        raise ConfigError(f"--reference {reference}: scores the lines of --file FILE; give --file, and no other texts")
    references = _lines(reference, "--reference")
    sources = texts if file.suffix.lower() == ".jsonl" else _lines(file, "--file")
    if len(references) != len(sources):
        raise ConfigError(
            f"--reference {reference}: has {len(references)} lines, --file {file} has {len(sources)} texts; line n of "
            f"one must be the translation of text n of the other. Restore the lost lines"
        )
    for option, path, lines in (("--file", file, sources), ("--reference", reference, references)):
        if empty := next((number for number, line in enumerate(lines, 1) if not line.strip()), 0):
            raise ConfigError(f"{option} {path}, line {empty}: is empty; remove this line from both files")
    return references


def _lines(file: Path, option: str) -> list[str]:
    """Lines of a text file.

    An end of line at its end begins no other.
    """
    try:
        text = file.read_text(encoding="utf-8-sig")
    except OSError as error:
        raise MissingInput(f"{option} {file}: cannot be read: {error.strerror}") from error
    except ValueError as error:
        raise ConfigError(f"{option} {file}: is not UTF-8 ({error}); convert it") from error
    return text.removesuffix("\n").split("\n")


def _read(file: Path, option: str, blank: bool) -> list[str]:
    """A prompt per line, of `.jsonl` in the field `prompt`."""
    lines = _lines(file, option)
    if file.suffix.lower() != ".jsonl":
        return [line for line in lines if blank or line.strip()]
    prompts = []
    for number, line in enumerate(lines, 1):
        if not line.strip():
            continue
        try:
            prompt = json.loads(line)["prompt"]
        except (ValueError, KeyError, TypeError, RecursionError):
            prompt = None
        if not isinstance(prompt, str):
            raise ConfigError(f'{option} {file}, line {number}: has no text "prompt"; write {{"prompt": "..."}}')
        if not _is_unicode(prompt):
            raise ConfigError(
                f"{option} {file}, line {number}: has half of a surrogate pair (\\ud800 to \\udfff); write both "
                f"halves, or the character itself"
            )
        prompts.append(prompt)
    return prompts


def _is_unicode(text: str) -> bool:
    """Return whether no character is a surrogate, which has no UTF-8."""
    try:
        text.encode("utf-8")
    except UnicodeEncodeError:
        return False
    return True
