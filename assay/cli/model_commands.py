"""Functions behind the commands that use a trained model: `assay generate`."""

from __future__ import annotations

import json
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from assay.cli.output import say
from assay.cli.run_commands import Arguments, checkpoint_of, load
from governance.errors import ConfigError, MissingInput
from governance.log import get_logger, progress


def generate(arguments: Arguments) -> None:
    """Continue prompts by a checkpoint, with speed and energy."""
    from dataclasses import asdict, replace

    from assay.pipeline import corpus, require_corpus
    from data_pipeline.tokens.tokenizer import load_encoder
    from pretrain.checkpoint.format import identity_of, read_checkpoint
    from pretrain.data.tokenizer_check import refuse_foreign_tokenizer
    from pretrain.inference.generation import generate as continue_prompts
    from pretrain.inference.generation import refuse_prompts
    from pretrain.inference.loaded_model import load_model
    from pretrain.inference.next_token import Sampling

    sampling = Sampling(arguments.temperature, arguments.top_p, arguments.seed)
    if not all(arguments.stops):
        raise ConfigError("--stop: is empty, so every text would end before it begins; give a text or leave it out")
    prompts = prompts_of(arguments.prompts, arguments.prompts_file)
    loaded, runtime = load(arguments, "data prepare")
    artifacts = corpus(loaded, replace(runtime, make=False))
    require_corpus(loaded, artifacts, runtime)  # the tokenizer is behind it
    checkpoint, origin = checkpoint_of(arguments, loaded, artifacts, runtime)
    manifest = read_checkpoint(checkpoint, runtime.root)
    refuse_foreign_tokenizer(manifest, artifacts["tokenizer"], runtime.root)
    encoder = load_encoder(artifacts["tokenizer"], runtime.root)
    ids = [encoder.encode(prompt).tolist() for prompt in prompts]
    refuse_prompts(ids, identity_of(manifest).recipe.train.sequence_length)

    def stops(number: int, made: Sequence[int]) -> bool:
        return bool(arguments.stops) and any(map(encoder.decode_after(ids[number], made).__contains__, arguments.stops))

    rows, most = loaded.config.engine.micro_batch_size, arguments.max_tokens
    with runtime.hooks.meter("generate") as energy:
        model = load_model(manifest, loaded.config.engine, runtime.root)
        begun = time.monotonic()
        with progress("generate", len(prompts) * most, "tokens") as advance:
            found = continue_prompts(model, ids, encoder.end_of_document, most, sampling, rows, advance, stops)
        seconds = time.monotonic() - begun
    texts: list[dict[str, Any]] = [
        {
            "prompt": prompt,
            "text": before_stop(encoder.decode_after(given, one.ids), arguments.stops),
            "prompt_tokens": len(given),
            "tokens": len(one.ids),
            "finish": one.finish,
        }
        for prompt, given, one in zip(prompts, ids, found, strict=True)
    ]
    made = sum(row["tokens"] for row in texts)
    for number, row in enumerate(texts, 1):
        title = f"--- prompt {number}: {row['tokens']} tokens, {_FINISHES[row['finish']]}\n" if len(texts) > 1 else ""
        say(f"{title}{row['prompt']}{row['text']}", generations=[row])
    get_logger(__name__).info(
        "%d tokens in %.1f s, %.1f tokens/s, energy with the loading of the model %s", made, seconds,
        made / max(seconds, 1e-9), _energy(energy),
    )  # fmt: skip
    if arguments.json:  # what a person reads as a message
        say(
            "", checkpoint=manifest.digest, origin=origin, sampling=asdict(sampling), tokens=made, seconds=seconds,
            tokens_per_second=made / max(seconds, 1e-9), energy=energy,
        )  # fmt: skip


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


def prompts_of(words: Sequence[str], file: Path | None) -> list[str]:
    """Prompts of the command line, then those of a file.

    Raises:
        ConfigError: there is none, or one is no text.
        MissingInput: the file cannot be read.
    """
    found = list(words)
    for number, word in enumerate(found, 1):
        if not _is_unicode(word):
            raise ConfigError(f"prompt {number}: is not UTF-8; convert it, or write it to a file for --prompts FILE")
    if file is not None:
        found += _read(file)
    if not found:
        raise ConfigError("no prompt: give texts after the checkpoint, or a file with --prompts FILE")
    return found


def _read(file: Path) -> list[str]:
    """A prompt per line, of `.jsonl` in the field `prompt`."""
    try:
        text = file.read_text(encoding="utf-8-sig")
    except OSError as error:
        raise MissingInput(f"--prompts {file}: cannot be read: {error.strerror}") from error
    except ValueError as error:
        raise ConfigError(f"--prompts {file}: is not UTF-8 ({error}); convert it") from error
    lines = [(number, line) for number, line in enumerate(text.split("\n"), 1) if line.strip()]
    if file.suffix.lower() != ".jsonl":
        return [line for _, line in lines]
    prompts = []
    for number, line in lines:
        try:
            prompt = json.loads(line)["prompt"]
        except (ValueError, KeyError, TypeError, RecursionError):
            prompt = None
        if not isinstance(prompt, str):
            raise ConfigError(f'--prompts {file}, line {number}: has no text "prompt"; write {{"prompt": "..."}}')
        if not _is_unicode(prompt):
            raise ConfigError(
                f"--prompts {file}, line {number}: has half of a character (\\ud800 to \\udfff); write both halves, or "
                f"the character itself"
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
