"""A project whose run has ended with checkpoints of several epochs, for tests of what they read."""

import json
import shutil
from pathlib import Path

from assay.cli.main import main
from governance.manifest import read_manifest
from tests.conftest import CONFIG, write_run, write_tales

ROOT = Path(__file__).parents[2]


def read_project(folder, *, packed):
    """Make it in an empty folder; all checkpoints but the last two are removed."""
    text = CONFIG.replace('licence = "CC0-1.0"', 'licence = "CC0-1.0"\nurl_field = "url"')
    text = text.replace("steps = 12", "steps = 24").replace("global_batch_size = 4", "global_batch_size = 16")
    text = text.replace("every_steps = 4", "every_steps = 3\nkeep_last = 2")
    if packed:
        text += "\n[data.pack]\nsequence_length = 64\n"
    write_run(folder, text)
    shutil.copy(ROOT / "configs" / "policy.toml", folder / "policy.toml")
    write_tales(folder / "a.jsonl", range(60))
    write_tales(folder / "b.jsonl", range(60, 120))
    _pages(folder)
    root = folder / "root"
    assert main(["run", str(folder / "run.toml"), "--root", str(root), "--data-workers", "1"]) == 0
    newest = max(root.glob("checkpoint/*/manifest.json"), key=lambda path: read_manifest(path).config["step"])
    words = [str(folder / "run.toml"), "--root", str(root)]
    assert main(["evaluate", *words, str(newest.parent)]) == 0
    assert main(["export", *words, str(newest.parent), str(folder / "exported")]) == 0
    return folder


def _pages(project):
    """The small project, with URLs, one exact copy, and a text too short to stay."""
    for name in ("a.jsonl", "b.jsonl"):
        rows = [json.loads(line) for line in (project / name).read_text().splitlines()]
        for number, row in enumerate(rows):
            row["url"] = f"https://www.{name[0]}.example/page/{number}?utm_source=mail"
        if name == "b.jsonl":
            rows[7]["text"] = rows[3]["text"]
            rows[9]["text"] = "too short"
        (project / name).write_text("".join(json.dumps(row) + "\n" for row in rows))
