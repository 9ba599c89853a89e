"""What the commands on checks do beyond an audit: freeze a reference, write the engine's own pages."""

from __future__ import annotations

import argparse
from dataclasses import replace
from pathlib import Path

from governance.errors import ConfigError
from governance.gate import require_open
from governance.manifest import Manifest
from governance.signing import private_key
from governance.stage import Runtime
from pretrain.commands import load, say
from pretrain.run import corpus
from pretrain.run_config import Run


def governance_freeze(arguments: argparse.Namespace) -> None:
    """The distributions of a corpus that was let through, signed, as the reference of later audits.

    Raises:
        GateClosed: the verdict does not let this corpus through.
        ConfigError: there is such a file; a reference is frozen.
    """
    from governance.checks.by_shard import sketch_corpus
    from governance.checks.drift import write_reference

    loaded, runtime = load(arguments, "data prepare")
    file: Path = arguments.file
    if file.exists():
        raise ConfigError(f"{file}: is there already, and a reference is never changed. Give another name.")
    artifacts = corpus(loaded, replace(runtime, make=False))
    config = loaded.config.governance
    require_open(artifacts["encode"], loaded.policy, config, loaded.folder, runtime.root)
    sketch = sketch_corpus(artifacts["clean"], runtime.root)
    key = private_key(config.key_path(loaded.folder))
    write_reference(file, sketch, artifacts["encode"], artifacts["clean"], key)
    say(f"{file}: {len(sketch)} features of corpus {artifacts['encode'].digest[:16]}; name it in [audit] reference")


def data_docs(folder: Path, checked: Manifest, artifacts: dict[str, Manifest], loaded: Run, runtime: Runtime) -> None:
    """Judge every table of an audit once more and write Great Expectations' pages of it."""
    from governance.checks.audit import tables_again
    from governance.checks.data_docs import write_data_docs

    tables = tables_again(checked, artifacts, loaded.policy, runtime)
    shown = write_data_docs(tables, loaded.policy.gates(), folder)
    say(f"{folder / 'index.html'}: {shown} tables as the engine judges them; the pages load styles from outside hosts")
