"""Pictures of three real reports: the quick start, one that the gate blocks, and a run with faults.

    python -m benchmarks.measures.governance.report_pictures FOLDER [--quickstart ROOT]

FOLDER receives `<run>-<width>-<light|dark>.png` of the whole page, `<run>-first.png` (page one's screen, 1280 x 800)
and `<run>.pdf`. Without `--quickstart`, the quick start is run first, in FOLDER too; its data stages serve the others:

- block: nothing is refused by licence before the audit, so documents without a licence reach it;
- faults: a short training, killed twice by SIGKILL, which then continues to its end.

For the eye: what can be measured is measured by `report_look`.
"""

from __future__ import annotations

import argparse
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

from benchmarks.measures.governance.report_look import SCREEN, WIDTHS, Browser

_HERE = Path(__file__).resolve().parents[3]
_CONFIG = _HERE / "configs" / "quickstart.toml"
_SHORT = ["--set", "train.steps=60", "--set", "checkpoint.every_steps=10", "--set", "train.validate_every_steps=20"]
_KILLED_AFTER = (14, 33)
"""Steps of the short training."""
_CLOSED = 77
_ENVIRONMENT = {**os.environ, "PYTHONPATH": str(_HERE)}
_DEADLINE = 1800.0


def _assay(root: Path, *words: str, expected: int = 0) -> None:
    done = subprocess.run(_command(root, *words), env=_ENVIRONMENT, check=False)
    if done.returncode != expected:
        raise RuntimeError(f"assay {' '.join(words)} ended with {done.returncode}, not {expected}")


def _command(root: Path, *words: str) -> list[str]:
    command, rest = [word for word in words if "=" not in word and word != "--set"], list(words)
    options = rest[len(command) :]
    return [sys.executable, "-m", "assay", *command, str(_CONFIG), "--root", str(root), *options]


def blocked(quickstart: Path, root: Path) -> Path:
    """Make a root whose corpus holds documents under no licence: the gate is closed and a report states why."""
    shutil.copytree(quickstart, root)
    for name in ("train", "checkpoint", "report"):
        shutil.rmtree(root / name, ignore_errors=True)
    _assay(root, "run", "--set", "data.clean.refuse_licences=[]", expected=_CLOSED)
    return root


def faulty(quickstart: Path, root: Path) -> Path:
    """Make a root whose training was killed twice and continued."""
    shutil.copytree(quickstart, root)
    for name in ("train", "checkpoint", "report"):
        shutil.rmtree(root / name, ignore_errors=True)
    for step in _KILLED_AFTER:
        running = subprocess.Popen(_command(root, "train", *_SHORT), env=_ENVIRONMENT, start_new_session=True)
        _await_step(root, step, running)
        os.killpg(running.pid, signal.SIGKILL)
        running.wait()
    _assay(root, "train", *_SHORT)
    _assay(root, "report", "write", *_SHORT)
    return root


def _await_step(root: Path, step: int, running: subprocess.Popen[bytes]) -> None:
    deadline = time.monotonic() + _DEADLINE
    while time.monotonic() < deadline and running.poll() is None:
        lines = [line for path in root.glob("train/*/metrics.jsonl") for line in path.read_text().splitlines()]
        if any(f'"step":{step}' in line.replace(" ", "") for line in lines):
            return
        time.sleep(0.2)
    raise RuntimeError(f"the training did not reach step {step}")


def pictures(root: Path, name: str, folder: Path, browser: Browser) -> None:
    """Take the pictures of a root's newest report."""
    page = folder / f".{name}"
    page.mkdir(exist_ok=True)
    shutil.copy(root / "report" / "latest.html", page / "report.html")
    for dark in (False, True):
        scheme = f"--blink-settings=preferredColorScheme={0 if dark else 1}"
        for width in WIDTHS:
            height = browser.look(page, width, dark=dark)["height"]
            frame = page / "frame.html"
            frame.write_text(f'<body style="margin:0"><iframe src="report.html" '
                             f'style="border:0;width:{width}px;height:{height}px"></iframe>')  # fmt: skip
            shot = folder / f"{name}-{width}-{'dark' if dark else 'light'}.png"
            browser.run(scheme, f"--window-size={max(width, 500)},{height}", "--hide-scrollbars",
                        f"--screenshot={shot}", frame.as_uri())  # fmt: skip
    browser.run(f"--window-size=1280,{SCREEN}", "--hide-scrollbars", f"--screenshot={folder / f'{name}-first.png'}",
                (page / "report.html").as_uri())  # fmt: skip
    browser.run(f"--print-to-pdf={folder / f'{name}.pdf'}", "--no-pdf-header-footer", (page / "report.html").as_uri())
    shutil.rmtree(page)


def main() -> None:
    """Make the reports that are missing in the folder, and take all pictures."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--quickstart", type=Path, help="root of a finished quick start, not changed")
    arguments = parser.parse_args()
    folder = arguments.folder.absolute()
    folder.mkdir(parents=True, exist_ok=True)
    quickstart = (arguments.quickstart or folder / "quickstart").absolute()
    if not (quickstart / "report" / "latest.html").exists():
        _assay(quickstart, "run")
    browser = Browser(folder / ".profile")
    for name, make in (("quickstart", None), ("block", blocked), ("faults", faulty)):
        root = quickstart if make is None else folder / name
        if make is not None and not (root / "report" / "latest.html").exists():
            shutil.rmtree(root, ignore_errors=True)
            make(quickstart, root)
        pictures(root, name, folder, browser)
        print(f"{name}: {root}", flush=True)


if __name__ == "__main__":
    main()
