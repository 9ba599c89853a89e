"""The function behind `assay inspect`."""

from __future__ import annotations

import shlex
from dataclasses import asdict
from pathlib import Path

from assay.cli.output import say
from assay.cli.run_commands import Arguments


def inspect(arguments: Arguments) -> None:
    """Print an inspection; write its page and the proposed run's file.

    A run's file that was edited is kept: the proposal gets another name.
    """
    from assay.inspect.inspection import inspect_path
    from assay.inspect.inspection_page import as_page, as_text
    from governance.files import write_text

    path: Path = arguments.path
    result = inspect_path(path, arguments.sample_mb * 1_000_000, arguments.data_workers, arguments.eval_sets)
    say(as_text(result), path=path, sampled=result.sampled, tables=[asdict(table) for table in result.tables])
    folder: Path = arguments.output or Path(f"inspect-{path.resolve().name}")
    write_text(folder / "inspection.html", as_page(result))
    say(f"\npage: {folder / 'inspection.html'}", page=folder / "inspection.html")
    if result.proposal:
        file = folder / "run.toml"
        if file.exists() and file.read_text(encoding="utf-8", errors="replace") != result.proposal:
            say(f"{file} differs from the proposal and is kept")
            file = folder / "run.proposed.toml"
        write_text(file, result.proposal)
        say(f"proposed run's file: {file}", proposal=file)
        steps = (
            ["assay", "data", "prepare", str(file)],
            ["assay", "run", str(file), "configs/10m.toml", "--set", "train.steps=100"],
        )
        prepare, train = map(shlex.join, steps)
        say(f"next: {prepare}", next=[prepare, train])
        say(f"then: {train}   (trains a small model for minutes, once {file} states licences that the policy allows)")
