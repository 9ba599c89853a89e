"""Handlers of `assay data ...`."""

from __future__ import annotations

import contextlib
import functools
import tempfile
from collections.abc import Iterator, Sequence
from dataclasses import asdict, replace
from pathlib import Path

from assay.clean_up import CleanUp, in_use, named_in, plan_clean_up
from assay.cli.output import artifact, say
from assay.cli.run_commands import Arguments, load, load_corpus
from assay.config import LoadedRun
from assay.corpus_gate import require_corpus
from data_pipeline.config import DataConfig
from data_pipeline.corpus_preflight import check
from data_pipeline.filters.classifier import train_classifier
from data_pipeline.prepare import stage_names, stages, survey
from data_pipeline.synthetic.synthesize import expected_costs
from data_pipeline.text_index.index_stage import TextIndexConfig
from data_pipeline.tokens.megatron import MegatronConfig, export_megatron, import_megatron
from data_pipeline.trace import explain
from governance.config import validate
from governance.errors import ConfigError, MissingInput
from governance.files import sha256_bytes, write_text
from governance.gate.explanation import counted
from governance.gate.verdict import Keyring
from governance.hooks import Hooks
from governance.hub_client import require_name
from governance.lineage.attest import KeySigner, attest_with, open_journal
from governance.manifest import FILE_NAME, Manifest, read_manifest
from governance.reports.documents.corpus_documents import SHARDS
from governance.reports.facts.stage_counts import corpus_counts, count_lines
from governance.reports.terminal import show_corpus
from governance.stage import Runtime, ShareDone, read_artifact, root_of
from governance.workers import take_turns


def prepare(arguments: Arguments) -> None:
    """Make every artifact of the corpus, or an array task's share."""
    from assay.pipeline import corpus

    loaded, runtime = load(arguments, "data prepare")
    if arguments.dry_run:
        _forecast(loaded.config.data, loaded.folder, runtime)
        return
    try:
        if runtime.worker[1] > 1 and runtime.mode == "all":
            made = take_turns(runtime, functools.partial(corpus, loaded))
        else:
            made = corpus(loaded, runtime)
    except ShareDone as left:
        say(f"left at {left}", left=str(left))
        return
    for stage, manifest in made.items():
        line = f"{stage:<13} {manifest.digest[:16]}  {runtime.root / manifest.folder}"
        say(line, artifacts={stage: artifact(manifest, runtime.root)})

    counts = corpus_counts(list(made.values()))
    say("\n".join(["", *count_lines(counts)]), counts=counts)


def _forecast(config: DataConfig, folder: Path, runtime: Runtime) -> None:
    """Print stages, steps, and the cost of each synthetic source."""
    check(config, folder, runtime.root, runtime.engine)
    sources = survey(config, folder, runtime)
    say(f"stages      {', '.join(stage_names(config))}", stages=list(stage_names(config)))
    further = " (NAME-2: the stage's second pass over the shards)" * any("-" in step for step in sources.steps)
    say(
        f"steps       {', '.join(sources.steps)}{further}; about {counted(sources.shards, 'shard')}",
        steps=sources.steps,
        shards=sources.shards,
    )
    for source, cost in expected_costs(config.sources, folder, runtime):
        say(cost.line(source), synthetic={source.name: asdict(cost)})


def show(arguments: Arguments) -> None:
    """Print the stages of a run, or an artifact with its ancestors."""
    from data_pipeline.pii.detect import replace_all

    path: Path = arguments.config
    if path.is_dir() or path.name == FILE_NAME:
        if arguments.overrides:
            raise ConfigError(f"--set has no effect on {path}, which is an artifact. Leave it out.")
        artifacts, root = list(_with_ancestors(path)), root_of(path)
    else:
        loaded, runtime = load(arguments, "data prepare")
        artifacts, root = list(_made_so_far(loaded.config.data, loaded.folder, runtime)), runtime.root
    shown = [{**artifact(manifest, root), "stats": manifest.stats} for manifest in artifacts]
    say(show_corpus(artifacts, root, replace_all), stages=shown)


def _with_ancestors(path: Path) -> Iterator[Manifest]:
    """List an artifact after its remaining ancestors, in run order."""
    from governance.reports.facts.report_facts import in_order

    last, root = read_artifact(path), root_of(path)
    ancestors: dict[str, Manifest] = {}
    waiting = [last]
    while waiting:
        current = waiting.pop()
        for item in current.inputs:  # one of the same stage is an earlier corpus, with a funnel of its own
            known = item.path in ancestors or item.stage == current.stage
            if not known and item.path.endswith(f"/{FILE_NAME}") and (root / item.path).exists():
                ancestors[item.path] = read_manifest(root / item.path)
                waiting.append(ancestors[item.path])
    yield from in_order(ancestors)
    yield last


def _made_so_far(config: DataConfig, folder: Path, runtime: Runtime) -> Iterator[Manifest]:
    """The artifacts up to the first missing one; at least one."""
    some = False
    try:
        for manifest in stages(config, folder, replace(runtime, make=False)):
            some = True
            yield manifest
    except MissingInput:
        if not some:
            raise


def clean_up(arguments: Arguments) -> None:
    """List the artifacts that nothing rests on; with `--execute`, remove them."""
    from assay.clean_up import clean_up as remove

    loaded, runtime = load(arguments, "data prepare")
    config, journal, root = loaded.config.data, loaded.journal(runtime.root), runtime.root
    named = []
    for path in arguments.keep:
        if root_of(path) != root.resolve():
            raise MissingInput(f"--keep {path}: is not an artifact of {root}")
        named.append(("--keep", read_artifact(path).path))
    missing = ""

    def plan() -> CleanUp:
        nonlocal missing
        artifacts = list(_made_so_far(config, loaded.folder, runtime))
        missing = next(
            (name for name in stage_names(config) if name not in {manifest.stage for manifest in artifacts}), ""
        )
        if missing and arguments.execute and not arguments.incomplete:
            raise MissingInput(
                f"{root}: has no {missing} of this run, so earlier artifacts that the run could need would be removed. "
                f"Nothing was removed. Make the run with: {runtime.command}; or, where that is intended, add "
                "--incomplete."
            )
        if not missing:
            artifacts += _draws(loaded, artifacts, runtime)
        kept = [("this run", manifest.path) for manifest in artifacts]
        kept += [*named, *named_in(loaded.config, config.dedup.against, loaded.folder, root)]
        return plan_clean_up(root, kept, loaded.keyring, journal)

    outcome = remove(root, plan, journal) if arguments.execute else plan()
    for candidate in outcome.candidates:
        what = {"artifact": candidate.path, "bytes": candidate.bytes, "kept_for": candidate.kept_for}
        gone = "removed" if arguments.execute else "free"
        words = f"kept for {candidate.kept_for}" if candidate.kept_for else gone
        say(f"{candidate.path:<34} {candidate.bytes / 1e6:>10,.1f} MB  {words}", candidates=[what])
    if missing:
        say(f"this run has no {missing} yet: what it would make or use from there on is not kept", missing=missing)
    count, size = len(outcome.free), f"{outcome.freed / 1e6:,.1f} MB"
    if arguments.execute:
        say(f"removed {count} of {len(outcome.candidates)} artifacts: {size}", removed=count, bytes=outcome.freed)
        return
    if user := in_use(root):
        say(f"the root is used by {user}", in_use=user)
    line = f"{count} of {len(outcome.candidates)} artifacts can be removed: {size}. Remove them with --execute"
    say(line, free=count, bytes=outcome.freed)


def _draws(loaded: LoadedRun, made: Sequence[Manifest], runtime: Runtime) -> list[Manifest]:
    """Draws from this run's teacher, where they are made."""
    from assay.teacher_draws import teacher_logits

    with contextlib.suppress(MissingInput):
        draws = teacher_logits(loaded, {manifest.stage: manifest for manifest in made}, replace(runtime, make=False))
        return [draws] if draws is not None else []
    return []


def trace(arguments: Arguments) -> None:
    """Print the origin of the document at a token of a shard."""
    from data_pipeline.trace import trace as find

    traced = find(arguments.shard, arguments.offset)
    facts = asdict(traced)
    if facts["document"]:
        del facts["document"]["text"], facts["document"]["columns"]  # they may hold personal data
    say(explain(traced), **facts)


def index(arguments: Arguments) -> None:
    """Make the index of the corpus's texts, for `assay trace-text`."""
    from assay.trace_text.traced_text import make_index

    loaded, runtime, artifacts = load_corpus(arguments)
    require_corpus(loaded, artifacts, runtime)
    config = validate({"shard_bytes": arguments.shard_size}, TextIndexConfig, "--shard-size")
    made = make_index(artifacts["encode"], config, runtime)
    size = sum(output.bytes for output in made.outputs)
    stats = made.stats
    say(
        f"{stats['documents']:,} documents, {stats['bytes']:,} bytes of text, {stats['shards']} shard(s); "
        f"{size / max(stats['bytes'], 1):.2f} bytes per byte of text  {runtime.root / made.folder}",
        **artifact(made, runtime.root), **stats, index_bytes=size,
    )  # fmt: skip


def train_classifiers(arguments: Arguments) -> None:
    """Train the classifiers of the run's file and print their scores."""
    loaded, runtime = load(arguments, "data train-classifier")
    models = loaded.config.data.classifiers
    if not models:
        raise ConfigError(f"{arguments.config}: has no [[data.classifiers]]. Name one with its labelled files.")
    for model in models:
        made = train_classifier(model, loaded.folder, runtime)
        stats, found = made.stats, {model.name: {**artifact(made, runtime.root), "stats": made.stats}}
        if model.model:
            line = f"{model.name}: {stats['kind']} with {stats['labels']} labels, taken over"
            say(f"{line}  {runtime.root / made.folder}", classifiers=found)
            continue
        say(
            f"{model.name}: AUC {stats['auc']:.3f} ({stats['auc_low']:.3f} to {stats['auc_high']:.3f}), "
            f"precision {stats['precision']:.3f}, recall {stats['recall']:.3f} on {stats['held_out_documents']} "
            f"documents held out of {stats['documents']}  {runtime.root / made.folder}",
            classifiers=found,
        )


def export(arguments: Arguments) -> None:
    """Write the token shards as Megatron's .bin and .idx."""
    loaded, runtime, artifacts = load_corpus(arguments)
    tokens = artifacts["encode"]
    for role in ("train", "validation"):
        if tokens.files(role, runtime.root):
            require_corpus(loaded, artifacts, runtime, role)
            prefix = arguments.prefix.with_name(f"{arguments.prefix.name}_{role}")
            for path in export_megatron(tokens, role, prefix, runtime.root):
                say(str(path), files=[path])


def push(arguments: Arguments) -> None:
    """Upload the documents of an admitted corpus with their card."""
    from assay.corpus_card import corpus_card
    from governance.hub_client import push as upload

    require_name(arguments.repository)
    loaded, runtime = load(arguments, "run")
    card, documents = corpus_card(loaded, runtime)
    shards = documents.files("documents", runtime.root)
    names = [f"data/train-{number:05}-of-{len(shards):05}.parquet" for number in range(len(shards))]
    with tempfile.TemporaryDirectory() as folder:
        write_text(Path(folder, "README.md"), card)
        Path(folder, "data").mkdir()
        for file, shard in zip(names, shards, strict=True):
            Path(folder, file).symlink_to(shard)
        message = f"Corpus {documents.digest[:16]}"
        again = "Run the same command again; it sends only what the hub lacks"
        commit = upload(
            Path(folder), arguments.repository, message, again=again, kind="dataset", public=arguments.public,
            replaces=(SHARDS,),
        )  # fmt: skip
    name = arguments.repository
    digests = [output.sha256 for output in documents.listed("documents")]
    pushed = {f"hub/{name}/{file}": digest for file, digest in zip(names, digests, strict=True)}
    pushed[f"hub/{name}/README.md"] = sha256_bytes(card.encode())
    loaded.journal(runtime.root).state("push", pushed, [documents.as_input()], commit=commit)
    say(f"{name}: {len(shards)} shard(s) of documents and their card, {commit}", push=name, commit=commit)


def import_tokens(arguments: Arguments) -> None:
    """Turn Megatron's .bin and .idx into an artifact of token shards."""
    values = {"vocabulary_size": arguments.vocabulary_size, "end_of_document": arguments.end_of_document}
    config = validate(values, MegatronConfig, f"assay data import {arguments.prefix}")
    root, keyring = arguments.root.absolute(), Keyring()
    hooks = Hooks(attest=attest_with(open_journal(keyring, root), keyring, root), signer=KeySigner(keyring))
    made = import_megatron(arguments.prefix, config, Runtime(root, hooks=hooks))
    say(f"{made.stage} {made.digest[:16]}  {root / made.folder}", **artifact(made, root))
