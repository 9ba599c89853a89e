"""Commands on checks: freeze a reference, write Great Expectations' Data Docs."""

from __future__ import annotations

import argparse
from dataclasses import replace
from pathlib import Path

from assay.cli.output import say
from assay.cli.run_commands import load
from assay.config import LoadedRun
from assay.pipeline import corpus, pass_gate
from governance.errors import ConfigError
from governance.manifest import Manifest
from governance.signing.dsse import private_key
from governance.stage import Runtime


def freeze(arguments: argparse.Namespace) -> None:
    """Sign the distributions of an accepted corpus as a reference for audits.

    Raises:
        GateClosed: the verdict does not let this corpus through.
        ConfigError: the file exists; a reference never changes.
    """
    from governance.checks.drift import write_reference
    from governance.checks.shards import sketch_corpus

    loaded, runtime = load(arguments, "data prepare")
    file: Path = arguments.file
    if file.exists():
        raise ConfigError(f"{file}: exists already, and a reference never changes. Give another name.")
    artifacts = corpus(loaded, replace(runtime, make=False))
    config = loaded.config.governance
    pass_gate(loaded, artifacts, runtime)
    sketch = sketch_corpus(artifacts["clean"], runtime.root)
    key = private_key(config.key_path(loaded.folder))
    write_reference(file, sketch, artifacts["encode"], artifacts["clean"], key)
    say(
        f"{file}: {len(sketch)} features of corpus {artifacts['encode'].digest[:16]}; name it in [audit] reference",
        reference=file,
        features=len(sketch),
    )


def data_docs(
    folder: Path | None, checked: Manifest, artifacts: dict[str, Manifest], loaded: LoadedRun, runtime: Runtime
) -> None:
    """Evaluate an audit again and write Great Expectations' Data Docs.

    Without a folder they are an artifact, which the report links.
    """
    from governance.checks.audit import tables_again
    from governance.checks.data_docs import data_docs as make
    from governance.checks.data_docs import write_data_docs

    tables, gates = tables_again(checked, artifacts, loaded.policy, runtime), loaded.policy.gates()
    if folder is None:
        made = make(tables, gates, checked, runtime)
        folder, shown = runtime.root / made.folder, made.stats["tables"]
    else:
        shown = write_data_docs(tables, gates, folder)
    page = folder / "index.html"
    say(f"{page}: {shown} tables by Great Expectations; the pages need no network", data_docs=page)


def suites(arguments: argparse.Namespace) -> None:
    """Write gates as suites of Great Expectations, or a suite as gates."""
    from governance.checks.gx.suite_files import gates_toml, read_suite, write_suites
    from governance.gate.policy import load_policy

    if arguments.policy.suffix == ".json":
        text = gates_toml(read_suite(arguments.policy, arguments.suite, arguments.owner)).rstrip()
        say(text, gates=text)
        return
    if arguments.folder is None:
        raise ConfigError("assay governance suites POLICY FOLDER: name a new folder for the suites")
    for path in write_suites(load_policy(arguments.policy).gates(), arguments.folder):
        say(str(path), suites=[path])
