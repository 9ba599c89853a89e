"""Handler of `assay inspect`."""

from __future__ import annotations

import shlex
from dataclasses import asdict
from pathlib import Path

from assay.cli.output import say
from assay.cli.run_commands import Arguments
from assay.inspect.kernels_ahead import compiled_ahead
from assay.run_file import CONFIGS
from governance.errors import require_writable
from governance.files import write_text


def inspect(arguments: Arguments) -> None:
    """Print an inspection; write its page and the proposed run's file.

    A run's file that was edited is kept: the proposal gets another name.
    """
    from assay.inspect.inspection import inspect_path
    from assay.inspect.inspection_page import as_page, as_text

    path: Path = arguments.path
    folder: Path = arguments.output or Path(f"inspect-{path.resolve().name}")
    own = folder / "policy.toml"  # the policy that the proposed file would be judged by
    policy = own if own.exists() else CONFIGS / own.name
    size = arguments.sample_mb * 1_000_000
    require_writable(folder)
    with compiled_ahead():
        result = inspect_path(path, size, arguments.data_workers, arguments.eval_sets, policy)
    page = folder / "inspection.html"
    write_text(page, as_page(result))
    file = folder / "run.toml"
    kept = file.exists() and file.read_text(encoding="utf-8", errors="replace") != result.proposal
    target = folder / "run.proposed.toml" if kept else file
    if result.proposal:
        write_text(target, result.proposal)
    # Printed last: a reader that has seen enough (`| head`) ends this process.
    say(as_text(result), path=path, sampled=result.sampled, tables=[asdict(table) for table in result.tables])
    say(f"\npage: {page}", page=page)
    if result.proposal:
        if kept:
            say(f"{file} differs from the proposal and is kept")
        say(f"proposed run's file: {target}", proposal=target)
        prepare, run = (shlex.join(["assay", *words, str(target)]) for words in (("data", "prepare"), ("run",)))
        first = f"edit {target} for the gates above, then: " if result.closing else ""
        say(f"next: {first}{run}", next=[prepare, run])
        say("      (corpus, audit, a first training and the report: minutes on two cores, if the corpus is small)")
