"""The quick start itself, from the packages of the index to the report."""

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from assay.config import load_run
from benchmarks.measures.governance.report_look import SCREEN, Browser

ROOT = Path(__file__).parents[1]


@pytest.mark.parametrize("name", ["quickstart", "handbook"])
def test_the_shipped_configurations_are_valid(name):
    run = load_run(ROOT / "configs" / f"{name}.toml", [])
    assert all(
        source.licence == "NOASSERTION" or source.licence in run.policy.licences.allowed
        for source in run.config.data.sources
    )


@pytest.mark.slow
@pytest.mark.network
def test_quickstart_from_the_index_to_the_report(tmp_path):
    """The file and the policy are those of `assay init`, unchanged; 40 of the 200 steps."""
    root = tmp_path / "root"
    environment = {**os.environ, "XDG_CONFIG_HOME": str(tmp_path / "home")}
    assay = [sys.executable, "-m", "pretrain"]
    subprocess.run([*assay, "init", str(tmp_path / "first")], env=environment, cwd=ROOT, check=True)
    words = [*assay, "run", str(tmp_path / "first" / "quickstart.toml"), "--root", str(root)]
    words += ["--set", "train.steps=40", "--set", "optim.decay_steps=20"]
    done = subprocess.run(words, capture_output=True, text=True, env=environment, cwd=ROOT, check=False)
    assert done.returncode == 0, done.stderr
    report = json.loads(next(root.glob("report/*/report.json")).read_bytes())
    assert report
    [clean] = root.glob("clean/*/manifest.json")
    stats = json.loads(clean.read_bytes())["stats"]
    assert stats["by_source"]["news"]["documents_kept"] == stats["by_source"]["tweets"]["documents_kept"] == 0
    assert stats["by_source"]["tweets"]["removed"]["licence_refused"] > 60_000
    [dedup] = root.glob("dedup/*/manifest.json")
    assert json.loads(dedup.read_bytes())["stats"]["removed"]["exact_duplicate"] == 7
    losses = json.loads(next(root.glob("train/*/losses.json")).read_bytes())["losses"]
    assert sum(losses[-5:]) < 0.9 * sum(losses[:5])
    first_screen(next(root.glob("report/*/report.json")).parent, Browser(tmp_path / "profile"), tmp_path)


def first_screen(folder, browser, scratch):
    """Verdict, reason, energy and findings fit the first screen; the whole page keeps its lengths."""
    if browser.name is None:
        return
    seen = browser.look(folder, 1280)
    assert seen["front"] <= SCREEN
    assert 400 < seen["words"] <= 4000
    page = (folder / "report.html").read_text(encoding="utf-8")
    head = page[page.index("<header>") : page.index("</header>")]
    for words in ("Every critical gate passed.", "checks passed", "kWh", "CO2e", "Main findings"):
        assert words in head
    if shutil.which("pdftotext"):
        assert browser.printed(folder / "report.html", scratch / "report.pdf").count("\f") <= 12
