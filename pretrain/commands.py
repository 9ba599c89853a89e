"""What each command does; `cli.py` says how it is typed.

Results go to standard output, so that they can be piped; messages and progress go to standard error.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

from governance.energy.meters import meter
from governance.errors import ConfigError, ManifestError
from governance.gate import GovernanceConfig
from governance.manifest import differences
from governance.signing import create_key, default_key_path, public_path
from governance.stage import Runtime
from governance.verification import lineage, read_artifact, root_of, verify_root
from pretrain.run_config import Run, load_run

Arguments = argparse.Namespace


def load(arguments: Arguments, command: str) -> tuple[Run, Runtime]:
    """The run and the runtime of a command; `command` is what a look-up tells the user to type."""
    run = load_run(arguments.config, arguments.overrides)
    root: Path = arguments.root or Path("runs") / arguments.config.stem
    runtime = Runtime(
        root=root.absolute(),
        workers=arguments.workers,
        command=f"assay {command} {arguments.config}" + (f" --root {arguments.root}" if arguments.root else ""),
        worker=getattr(arguments, "worker", (0, 1)),
        engine=getattr(arguments, "engine", "duckdb"),
        meter=meter(run.config.energy, root.absolute() / "energy.jsonl"),
    )
    return run, runtime


def _words(arguments: Arguments, runtime: Runtime) -> list[str]:
    """The command-line words that repeat this run's configuration to a child process."""
    overrides = [word for override in arguments.overrides for word in ("--set", override)]
    return [str(arguments.config.absolute()), "--root", str(runtime.root), *overrides]


def say(line: str) -> None:
    """Print one line of a result."""
    sys.stdout.write(line + "\n")


def run(arguments: Arguments) -> None:
    """All of it."""
    from pretrain.run import whole_way

    loaded, runtime = load(arguments, "run")
    say(f"report: {whole_way(loaded, runtime, arguments.processes, _words(arguments, runtime))}")


def governance_check(arguments: Arguments) -> int:
    """Audit and sign; the exit status is that of the gate."""
    from dataclasses import replace

    from governance.gate import explain, require_open
    from pretrain.run import corpus, judge

    loaded, runtime = load(arguments, "data prepare")
    artifacts = corpus(loaded, replace(runtime, make=False))
    _, verdict = judge(loaded, artifacts, runtime)
    say(explain(verdict))
    require_open(artifacts["encode"], loaded.policy, loaded.config.governance, loaded.folder, runtime.root)
    return 0


def governance_verify(arguments: Arguments) -> int:
    """Read everything below a root."""
    root = root_of(arguments.artifact)
    keys = tuple(str(key.absolute()) for key in arguments.keys)
    files, problems = verify_root(root, GovernanceConfig(trusted_keys=keys), Path())
    for problem in problems:
        say(problem)
    if problems:
        raise ManifestError(f"{len(problems)} problem(s) in {files} files below {root}")
    say(f"{files} files below {root}: all as their manifests say")
    return 0


def governance_trace(arguments: Arguments) -> None:
    """An artifact's ancestors."""
    manifest = read_artifact(arguments.artifact)
    say(f"{manifest.stage} {manifest.digest[:16]} {manifest.path}")
    for depth, item in lineage(manifest, root_of(arguments.artifact)):
        say(f"{'  ' * depth}{item.stage} {item.digest[:16]} {item.path}")


def governance_diff(arguments: Arguments) -> int:
    """Two artifacts compared; 1 when they differ, as diff does."""
    lines = differences(read_artifact(arguments.ours), read_artifact(arguments.theirs))
    for line in lines:
        say(line)
    return 1 if lines else 0


def governance_keygen(arguments: Arguments) -> None:
    """A key pair."""
    path = arguments.path or default_key_path()
    create_key(path)
    say(f"private key {path}, public key {public_path(path)}")


def governance_audit_model(arguments: Arguments) -> None:
    """What a checkpoint leans to: the strongest leanings on the templates, then each set."""
    import json
    from dataclasses import replace

    from pretrain.run import corpus, model_audit

    loaded, runtime = load(arguments, "data prepare")
    artifacts = corpus(loaded, replace(runtime, make=False))
    made = model_audit(loaded, artifacts, arguments.checkpoint, runtime)
    found = json.loads((runtime.root / made.folder / "leanings.json").read_bytes())
    say(f"leanings of step {made.stats['step']}, in nats, with 95 % intervals; the ten farthest from 0:")
    for row in sorted(found["templates"], key=lambda row: -max(row["lower"] or 0, -(row["upper"] or 0)))[:10]:
        place = f"{row['axis']}/{row['group']} {row['category']}"
        say(f"  {place:<40} {row['lean']:+.3f} [{row['lower']:+.3f}, {row['upper']:+.3f}]")
    for name, rows in found["sets"].items():
        figures = ", ".join(f"{key} {value}" for key, value in rows[0].items() if key != "category")
        say(f"{name}: {figures}")
    say(f"{runtime.root / made.folder / 'leanings.json'}")


def train(arguments: Arguments) -> None:
    """Training on a corpus that is there and let through."""
    from dataclasses import replace

    from pretrain.run import corpus, training_in

    loaded, runtime = load(arguments, "data prepare")
    artifacts = corpus(loaded, replace(runtime, make=False))
    manifest = training_in(arguments.processes, loaded, artifacts, runtime, _words(arguments, runtime))
    say(f"train {manifest.digest[:16]}  {runtime.root / manifest.folder}")


def evaluate(arguments: Arguments) -> None:
    """A checkpoint's loss on all validation rows."""
    from dataclasses import replace

    from pretrain.evaluate import evaluate as measure
    from pretrain.run import corpus

    loaded, runtime = load(arguments, "data prepare")
    artifacts = corpus(loaded, replace(runtime, make=False))
    found = measure(
        arguments.checkpoint, artifacts.get("pack", artifacts["encode"]), loaded.config.engine, runtime.root
    )
    say(f"loss {found.loss:.4f} nats/token, {found.bits_per_byte:.4f} bits/byte, {found.tokens:,} tokens")


def export(arguments: Arguments) -> None:
    """A checkpoint as a Hugging Face folder."""
    from dataclasses import replace

    from pretrain.export import export as write
    from pretrain.run import corpus

    loaded, runtime = load(arguments, "data prepare")
    artifacts = corpus(loaded, replace(runtime, make=False))
    tokenizer = runtime.root / artifacts["tokenizer"].folder / "tokenizer.json"
    end = int(artifacts["tokenizer"].stats["end_of_document"])
    manifest = write(arguments.checkpoint, tokenizer, end, arguments.target, runtime.root)
    say(f"{arguments.target}: checkpoint {manifest.digest[:16]} as a Llama folder")


def report(arguments: Arguments) -> None:
    """The report of what is there."""
    from pretrain.run import write_report

    loaded, runtime = load(arguments, "run")
    say(f"report: {write_report(loaded, runtime)}")


def slurm_render(arguments: Arguments) -> None:
    """The job script."""
    from slurm.submit import render

    loaded, runtime = load(arguments, "run")
    sys.stdout.write(render(arguments.config.absolute(), runtime.root, loaded.config.slurm))


def slurm_submit(arguments: Arguments) -> None:
    """The job."""
    from slurm.submit import submit

    loaded, runtime = load(arguments, "run")
    if arguments.overrides:
        raise ConfigError("--set has no effect on a submitted job: it reads the file. Write the change into the file.")
    say(submit(arguments.config.absolute(), runtime.root, loaded.config.slurm))


def slurm_status(arguments: Arguments) -> None:
    """The job's state."""
    from slurm.submit import status

    _, runtime = load(arguments, "slurm submit")
    say(status(runtime.root))
