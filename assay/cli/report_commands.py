"""Handlers of `assay report ...`."""

from __future__ import annotations

import webbrowser
from pathlib import Path

from assay.cli.output import artifact, say
from assay.cli.run_commands import Arguments, default_root, load
from assay.config import load_run
from assay.run_report import make_documents
from governance.errors import ManifestError, MissingInput
from governance.files import write_text
from governance.gate.verdict import GovernanceConfig, Keyring
from governance.log import get_logger
from governance.manifest import FILE_NAME, Manifest, read_manifest


def write(arguments: Arguments) -> None:
    """Write the report and, on request, the documents filled from it."""
    from assay.cli.slurm_commands import refresh_accounting
    from assay.pipeline import report_run

    loaded, runtime = load(arguments, "run")
    refresh_accounting(runtime.root)
    artifacts, reported = report_run(loaded, runtime)
    page = runtime.root / reported.folder / "report.html"
    say(f"report: {page}", report=page)
    if arguments.documents:
        folder = runtime.root / make_documents(loaded, artifacts, reported, runtime).folder
        say(f"documents: {folder}", documents=folder)
    if arguments.open and not webbrowser.open(page.absolute().as_uri()):
        get_logger(__name__).warning("no browser can be opened here; open %s on a machine that has one", page)


def verify(arguments: Arguments) -> None:
    """Recompute every number of a report and its documents from signed evidence.

    Raises:
        ManifestError: one differs, or the evidence is not as it was, or not as it was signed; each was named.
    """
    from data_pipeline.pii.detect import replace_all
    from governance.reports.recompute import recompute, report_bytes, rests_on
    from governance.verification import verify_evidence

    root, report = _find(arguments.run, arguments.root)
    data = report_bytes(report, root)
    problems = verify_evidence(rests_on(report, root, data), root.absolute(), _keyring(arguments))
    checked = recompute(report, root, replace_all, data)
    for line in (*problems, *(one.line() for one in checked.mismatches)):
        say(line, problems=[line])
    folder = root / report.folder
    if problems:
        raise ManifestError(
            f"{folder}: {len(problems)} problem(s) with its evidence, {len(checked.mismatches)} place(s) differ from "
            "it. If another key signed the journal, give its public key with --key"
        )
    if checked.mismatches:
        raise ManifestError(f"{folder}: {len(checked.mismatches)} place(s) differ from the evidence")
    say(
        f"{folder}: {checked.numbers:,} numbers of {', '.join(checked.files)}: all equal to the evidence, and the "
        "evidence to the journal",
        **artifact(report, root),
        numbers=checked.numbers,
        problems=[],
    )


def _keyring(arguments: Arguments) -> Keyring:
    """Trusted keys: those of the run's file and of the command line."""
    given = tuple(str(key.absolute()) for key in arguments.keys)
    if not (arguments.run.is_file() and arguments.run.suffix == ".toml"):
        return Keyring(GovernanceConfig(trusted_keys=given))
    run = load_run(arguments.run, [], arguments.more, needs="data or model")  # the other sections hold no key
    keys = (*run.config.governance.trusted_keys, *given)
    return Keyring(run.config.governance.model_copy(update={"trusted_keys": keys}), run.folder)


def compare(arguments: Arguments) -> None:
    """Compare two runs as lines and, on request, as a page."""
    from governance.reports.compare import comparison, comparison_lines, comparison_page, side_of

    sides = []
    for run in (arguments.ours, arguments.theirs):
        root, report = _find(run, None)
        sides.append(side_of(report, root, str(run)))
    found = comparison(*sides)
    say("\n".join(comparison_lines(found)), **found)
    if arguments.html is not None:
        write_text(arguments.html, comparison_page(found))
        say(f"page: {arguments.html}", page=arguments.html)


def index(arguments: Arguments) -> None:
    """List all runs under a folder, as lines and as a page.

    Raises:
        MissingInput: it contains no run.
    """
    from governance.reports.index import index_lines, index_page, runs_below

    folder: Path = arguments.runs
    page: Path = arguments.html or folder / "index.html"
    rows = runs_below(folder, page.parent)
    if not rows:
        raise MissingInput(f"{folder}: no report in it or in its folders, three deep. Write one: assay report CONFIG")
    say("\n".join(index_lines(rows)), runs=rows)
    write_text(page, index_page(rows, folder.resolve().name))
    say(f"page: {page}", page=page)


def _find(run: Path, root: Path | None) -> tuple[Path, Manifest]:
    """Find the root and report of a configuration, root or folder.

    Raises:
        MissingInput: there is no report.
    """
    from governance.reports.recompute import newest_report

    if run.is_file() and run.suffix == ".toml":
        place = root or default_root(run)
        return place, newest_report(place)
    folder = run.parent if run.name in (FILE_NAME, "report.html", "report.json") else run
    if not (folder / FILE_NAME).exists():
        return folder, newest_report(folder)
    manifest, place = read_manifest(folder / FILE_NAME), folder.resolve().parents[1]
    if manifest.stage == "documents":
        reports = [item for item in manifest.inputs if item.stage == "report"]
        manifest = read_manifest(place / reports[0].path) if reports else manifest
    if manifest.stage != "report":
        raise MissingInput(f"{run}: is an artifact of the stage {manifest.stage}, not a report. Give a run's root.")
    return place, manifest
