"""Stage "synthetic": a teacher's answers, each paid for once.

Promise: an answer that is on the disk is never requested again, whenever the process is killed and whatever other
setting changes; the artifact lists the answers in the order of their requests, so one set of answers is one digest,
and everything after it is made from these files, without the endpoint. A look-up sends nothing. Price: the seeds are
read once to list the requests and again to send any, with 750 bytes of memory for each request; at a kill the
requests under way (`concurrency` at most) are lost.

An answer is found by its request, but names the seeds that make this request now: a line of an earlier artifact may
have another name or number for them.

The key has the seeds' and the template's digests and every setting that reaches the teacher or its lineage; address,
pace and budgets are not in it. Another process that requests answers for the same root waits.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ThreadPoolExecutor, wait
from dataclasses import dataclass, replace
from functools import partial
from itertools import chain
from pathlib import Path
from typing import Any, Literal

from data_pipeline.readers.file_types.teacher_answers import TRUNCATED, Answer, choices_of, parsed, tokens_of
from data_pipeline.readers.hub import at_commit
from data_pipeline.readers.items import SourceFiles, fetched_items, list_files
from data_pipeline.readers.local import LocalFile
from data_pipeline.readers.sources import HubSource, Source, SyntheticSource, identity
from data_pipeline.synthetic.answer_log import LOCK, LOG, STAGE, Place, answer_at, append, known_answers, note_artifact
from data_pipeline.synthetic.endpoint import Endpoint, Stopped
from data_pipeline.synthetic.prompts import Listed, Request, check_fields, listed, prompt_files, read_template, requests
from data_pipeline.synthetic.spending import TRIES, ExpectedCost, TeacherBudget, forecast, refuse_beyond_budget
from governance.config import Section
from governance.errors import MissingInput
from governance.file_digests import Digests, unchanged
from governance.files import atomic_file, held, remove_file, sha256_bytes
from governance.log import Advance, get_logger, progress
from governance.manifest import FILE_NAME, Input, Manifest, Output, describe
from governance.processes import pass_on_interrupt
from governance.stage import Made, Recipe, Runtime, artifact_folder, run_stage

VERSION = 2
_FILE_BYTES = 64 << 20
_HOPELESS = 20  # answers without a usable text, from the first of a start: the settings are wrong
_LOOK_SECONDS = 1.0
_PATIENCE = 30 * 86_400.0  # how long to wait for another process that requests answers


class Teaching(Section):
    """Recipe of the answers: their requests, and facts about the teacher."""

    api: Literal["chat", "completions"]
    model: str
    answered_models: tuple[str, ...]
    licence: str
    terms: str
    system: str
    temperature: float
    max_tokens: int
    seed: int | None
    n: int
    choices: int
    limit: int
    seed_characters: int
    template_sha256: str
    seeds: Source | None
    """The source of the seeds, without its place; None: rows of prompts."""
    runs_here: bool
    joules_per_token: float | None
    joules_source: str


@dataclass(frozen=True)
class Planned:
    """A source with everything that its requests are made of."""

    source: SyntheticSource
    template: str
    seeds: SourceFiles | None
    files: list[LocalFile]
    recipe: Recipe
    inputs: list[Input]

    def requests(self) -> Iterator[Request]:
        """Its requests of each seed, in order."""
        return requests(self.source, self.template, self.seeds, self.files)

    def read(self) -> list[tuple[Path, str]]:
        """Local files of the seeds and prompts, with their digests."""
        seeds = [] if self.seeds is None else [*self.seeds.items, *self.seeds.beside]
        digests = [item.digest for item in self.inputs][len(seeds) :]
        prompts = zip((file.path for file in self.files), digests, strict=True)
        return [*((item.path, item.digest) for item in seeds if item.path is not None), *prompts]

    def folder(self, root: Path) -> Path:
        """The artifact's folder."""
        return artifact_folder(STAGE, self.recipe.key([item.digest for item in self.inputs]), root)


def plan(
    source: SyntheticSource, sources: Sequence[Source], folder: Path, digests: Digests, runtime: Runtime
) -> Planned:
    """Recipe and inputs of a source's answers.

    Raises:
        MissingInput: the seeds, the prompts or the template are missing.
        ConfigError: the template has a field that no seed has.
    """
    template = read_template(source, folder)
    seeds = seeds_of(source, sources)
    check_fields(source, template, seeds)
    found = None
    if seeds is not None:
        found = list_files(
            at_commit(seeds, runtime) if isinstance(seeds, HubSource) else seeds, folder, digests, runtime
        )
    files = prompt_files(source, folder)
    inputs = found.inputs() if found else []
    inputs += [
        Input(stage="file", digest=digests.of(one.path), path=f"{source.name}/prompts/{one.name}") for one in files
    ]
    named = {name: getattr(source, name) for name in Teaching.model_fields.keys() & type(source).model_fields.keys()}
    named |= {
        "template_sha256": sha256_bytes(template.encode("utf-8")),
        "seeds": identity(found.source) if found else None,
    }
    return Planned(source, template, found, files, Recipe(STAGE, VERSION, Teaching(**named)), inputs)


def seeds_of(source: SyntheticSource, sources: Sequence[Source]) -> Source | None:
    """The source that `seeds` names; None for prompts."""
    return next((one for one in sources if one.name == source.seeds), None)


def check_synthetic(source: SyntheticSource, sources: Sequence[Source], folder: Path) -> None:
    """Look up template, fields and prompts, without reading seeds.

    Raises:
        MissingInput: a file is missing.
        ConfigError: the template cannot be used.
    """
    check_fields(source, read_template(source, folder), seeds_of(source, sources))
    prompt_files(source, folder)


def expected_costs(
    sources: Sequence[Source], folder: Path, runtime: Runtime
) -> Iterator[tuple[SyntheticSource, ExpectedCost]]:
    """Requests and tokens left of each synthetic source; nothing is sent."""
    digests = Digests(runtime)
    for source in sources:
        if isinstance(source, SyntheticSource):
            planned = plan(source, sources, folder, digests, runtime)
            asked = listed(planned.requests())
            made = (planned.folder(runtime.root) / FILE_NAME).exists()  # then refused requests are not sent again
            known = asked if made else known_answers(runtime.root, runtime.hooks.signer, asked)
            yield source, forecast(source, asked, known)


def list_answers(planned: Planned, digests: Digests, runtime: Runtime) -> tuple[SourceFiles, Manifest]:
    """Make or find a source's answers; return them as its files.

    Raises:
        BudgetReached: its budget has no room for all requests.
        ConfigError: the endpoint refuses the key or the model; or the budget is too small from the start.
        MissingInput: the endpoint does not answer; or the answers are missing and `runtime.make` is off.
    """
    made = run_stage(planned.recipe, planned.inputs, runtime, partial(_make, planned, runtime), alone=True)
    for log in (planned.folder(runtime.root) / name for name in (LOG, TRIES)):
        if runtime.make and log.exists():
            remove_file(log)  # the answers are in the artifact now
    prefix = f"{made.folder}/answers/"
    outputs = [(output.path.removeprefix(prefix), output) for output in made.listed("answers")]
    return SourceFiles(planned.source, fetched_items(outputs, digests, runtime.root), [], []), made


def facts_of(made: Manifest) -> dict[str, Any]:
    """Lineage of a source's texts, for the counts of `ingest`."""
    named = ("model", "licence", "terms", "template_sha256", "temperature", "max_tokens")
    return {"artifact": made.folder, **{name: made.config[name] for name in named}, **made.stats}


def _make(planned: Planned, runtime: Runtime, folder: Path) -> Made:
    root, signer = runtime.root, runtime.hooks.signer
    with held(root / LOCK, "requests answers", _PATIENCE):
        with unchanged(planned.read()):
            asked = listed(planned.requests())
        if not asked:
            raise MissingInput(f"source {planned.source.name}: has no seed, so no request. Correct seeds or prompts.")
        known = known_answers(root, signer, asked)
        if len(known) < len(asked):
            _request_missing(planned, asked, known, folder, runtime)
            known = known_answers(root, signer, asked, folder / LOG)
        answers = (
            replace(answer_at(known[key], signer), seeds=list(dict.fromkeys(facts.seeds)))
            for key, facts in asked.items()
        )
        outputs, stats = _write(answers, planned.source, folder, root)
        note = note_artifact(planned.recipe.key([item.digest for item in planned.inputs]), outputs, root, signer)
        beside = describe(note, root)
        runtime.notes.beside.setdefault(STAGE, {})[beside.path] = beside
    return Made(outputs, stats)


def _request_missing(
    planned: Planned, asked: Mapping[str, Listed], known: Mapping[str, Place], folder: Path, runtime: Runtime
) -> None:
    """Send the requests without an answer; keep each answer as it comes."""
    source, signer = planned.source, runtime.hooks.signer
    expected = forecast(source, asked, known)
    refuse_beyond_budget(source, expected)
    get_logger(__name__).info("%s", expected.line(source))
    budget = TeacherBudget(source, folder / TRIES, signer)
    budget.recall(runtime.root, asked, known)
    for key, place in known.items():
        budget.add(answer_at(place, signer), asked[key].bounds)
    left = _first_of_each(planned.requests(), asked.keys() - known.keys())
    keep = partial(append, folder / LOG, signer=signer)
    with progress(f"answers {source.name}", expected.requests, "requests", done=expected.answered) as advance:
        kept = _send_all(left, Endpoint(source, budget), keep, advance)
    if (missing := expected.requests - expected.answered - kept) > 0:
        raise budget.reached(missing)


def _first_of_each(found: Iterator[Request], keys: set[str]) -> Iterator[Request]:
    """The requests of these keys, each once."""
    for request in found:
        if request.key in keys:
            keys.remove(request.key)
            yield request


def _send_all(left: Iterator[Request], endpoint: Endpoint, keep: Callable[[Answer], None], advance: Advance) -> int:
    """Keep `concurrency` requests under way while the budget allows.

    The result is the number of answers. After an error those under way are awaited and kept, then it is raised.
    """
    source, budget = endpoint.source, endpoint.budget
    waiting: dict[Future[Answer], Request] = {}
    error: BaseException | None = None
    unusable = kept = 0
    following = next(left, None)
    with ThreadPoolExecutor(source.concurrency) as pool:
        while waiting or (following and error is None and budget.fits(following)):
            try:
                while following and error is None and len(waiting) < source.concurrency and budget.fits(following):
                    pass_on_interrupt()
                    budget.hold(following)
                    waiting[pool.submit(endpoint.answer, following)] = following
                    following = next(left, None)
                for future in wait(waiting, _LOOK_SECONDS, FIRST_COMPLETED).done:
                    request = waiting.pop(future)
                    budget.hold(request, -1)
                    answer = future.result()
                    keep(answer)
                    budget.add(answer, request.bounds)
                    kept += 1
                    advance(1, f"{budget.tokens_in + budget.tokens_out:,} tokens")
                    usable = any(not choice.fault for choice in choices_of(answer, source))
                    unusable = _HOPELESS + 1 if usable else unusable + 1
                    if unusable == _HOPELESS:
                        raise _hopeless(answer, source)
            except Stopped:  # one try was stopped; there may be room again when others have ended
                left, following = chain((following,) if following else (), left), request
            except BaseException as caught:
                if error is None and waiting:
                    get_logger(__name__).info("%s: waiting for %d answers under way", source.name, len(waiting))
                error = error or caught
                endpoint.stopping.set()
    if error is not None:
        raise error
    return kept


def _hopeless(answer: Answer, source: SyntheticSource) -> MissingInput:
    first = next(iter(choices_of(answer, source)))
    return MissingInput(
        f"source {source.name}: the first {_HOPELESS} answers hold no usable text ({first.fault}: "
        f"{first.text[:300]}). They are kept. Correct the template, model or answered_models, then run the "
        "same command."
    )


def _write(
    answers: Iterator[Answer], source: SyntheticSource, folder: Path, root: Path
) -> tuple[list[Output], dict[str, Any]]:
    """Write the answers in order; return their files and counts."""
    counts: Counter[str] = Counter()
    models: Counter[str] = Counter()
    endpoints: Counter[str] = Counter()
    outputs: list[Output] = []
    answer = next(answers, None)
    while answer is not None:
        path = folder / "answers" / f"{len(outputs):05d}.jsonl"
        size = 0
        with atomic_file(path) as file:
            while answer is not None and size < _FILE_BYTES:
                size += file.write(answer.line())
                counts.update(_counts(answer, source))
                body = parsed(answer)
                models[body["model"] if isinstance(body, Mapping) else "(none)"] += 1
                endpoints[answer.endpoint] += 1
                answer = next(answers, None)
        outputs.append(describe(path, root))
    named = ("requests", "texts", "faults", "truncated", "tokens_in", "tokens_out", "without_token_counts")
    return outputs, {
        **{name: counts[name] for name in named},
        "answered_by": dict(sorted(models.items())),
        "endpoints": dict(sorted(endpoints.items())),
        "energy": _energy(source, counts),
    }


def _counts(answer: Answer, source: SyntheticSource) -> dict[str, int]:
    choices = list(choices_of(answer, source))
    used = tokens_of(answer)
    return {
        "requests": 1,
        "texts": sum(not choice.fault for choice in choices),
        "faults": sum(bool(choice.fault) for choice in choices),
        "truncated": sum(not choice.fault and choice.finish_reason == TRUNCATED for choice in choices),
        "tokens_in": used[0] if used else 0,
        "tokens_out": used[1] if used else 0,
        "without_token_counts": used is None,
    }


def _energy(source: SyntheticSource, counts: Mapping[str, int]) -> dict[str, Any]:
    """The teacher's energy: measured here, estimated by the user's figure, or unknown."""
    if source.runs_here:
        return {"method": "measured with this stage", "joules": None, "source": "run.energy of the artifact"}
    if source.joules_per_token is None:
        return {"method": "unknown", "joules": None, "source": ""}
    joules = round(source.joules_per_token * counts["tokens_out"], 3)
    return {"method": "estimate per token", "joules": joules, "source": source.joules_source}
