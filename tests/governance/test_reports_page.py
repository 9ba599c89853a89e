import json
import math
import random
import re
import shutil
from html.parser import HTMLParser
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from governance.energy.ledger import host_ledger
from governance.errors import ManifestError
from governance.files import append_line, write_json
from governance.manifest import Input, Manifest, describe, read_manifest, verify, write_manifest
from governance.reports.report import report
from governance.stage import Runtime

HOSTILE = "<script>alert('x')</script>\u202e\x00\" onload=\"x"
SOURCES = {
    "wikipedia": ("CC-BY-SA-4.0", 61_420, 1900),
    "government-gazettes": ("CC0-1.0", 24_310, 5200),
    "forum": ("NOASSERTION", 12_800, 420),
    "manuals": ("MIT", 6_042, 3100),
}
LICENCES = [  # of the kept documents; wikipedia's are those of its rows
    {"source": "wikipedia", "licence": "CC-BY-SA-4.0", "documents": 40_000},
    {"source": "wikipedia", "licence": "CC0-1.0", "documents": 2_000},
    *({"source": name, "licence": SOURCES[name][0], "documents": 900} for name in SOURCES if name != "wikipedia"),
]
ESTIMATED = "estimated: TDP x utilisation (/proc/stat)"
VOID = {"meta", "br", "hr", "col", "link", "img", "input"}


# fmt: off
def manifest_of(root, stage, inputs, stats, config=None, files=(), energy=None, run=None):
    block = {
        "started": "2026-11-24T10:00:00Z", "finished": "2026-11-24T10:04:10Z", "python": "3.11.9", "slurm_job_id": None,
        "command": ["assay", "run", "configs/quickstart.toml"], "energy": energy,
        "git": {"commit": "5cdf739" + "0" * 33, "dirty": stage == "audit"},
        "packages": {"pyarrow": "26.0.1", "numpy": "2.4.0", **({"torch": "2.9.1"} if stage == "train" else {})},
        "host": {"name": "node1", "system": "Linux-6.1-x86_64", "cpus": 2}, **(run or {}),
    }
    made = Manifest(stage=stage, version=1, key=key_of(stage), config=config or {}, inputs=tuple(inputs),
                    outputs=tuple(describe(path, root) for path in files), stats=stats, run=block)
    write_manifest(made, root)
    return made


def key_of(stage):
    return (f"{sum(map(ord, stage)):04x}" * 16)[:64]


def folder_of(root, stage):
    return root / stage / key_of(stage)[:16]


def energy_of(joules):
    coverage = {"measured": [], "estimated": ["processors"], "missing": ["RAPL: this system shows no counters"]}
    return {"joules": joules, "low": round(joules * 0.3, 3), "high": round(joules * 2.1, 3), "method": ESTIMATED,
            "scope": "node", "seconds": round(joules / 6.5, 3), "coverage": coverage, "parts": []}


def funnel_stage(before, cuts, seed):
    """Counts of a stage that keeps a part of each source, with the reasons for dropping the rest."""
    draw = random.Random(seed)
    by_source = {}
    for name, (documents, size) in before.items():
        removed = {reason: int(documents * rate * draw.uniform(0.4, 1.6)) for reason, rate in cuts.items()}
        kept = documents - sum(removed.values())
        by_source[name] = {"documents_in": documents, "documents_kept": kept, "bytes_in": size,
                           "bytes_kept": size * kept // documents, "removed": removed}
    fields = ("documents_in", "documents_kept", "bytes_in", "bytes_kept")
    total = {field: sum(entry[field] for entry in by_source.values()) for field in fields}
    removed = {reason: sum(entry["removed"][reason] for entry in by_source.values()) for reason in cuts}
    after = {name: (entry["documents_kept"], entry["bytes_kept"]) for name, entry in by_source.items()}
    return {**total, "removed": removed, "by_source": by_source}, after


TEXTS = [
    "Reach our desk at jane.doe@example.org or +44 (0)20 7946 0958 between nine and five. " * 4,
    HOSTILE,
    "buy now buy now buy now buy now buy now buy now", "السلام عليكم ورحمة الله وبركاته", "short",
    "The committee met on Tuesday and took note of the report of the previous session, which had been sent. " * 5,
]


def shard(root, stage, role, rows):
    path = folder_of(root, stage) / role / "000000.parquet"
    path.parent.mkdir(parents=True, exist_ok=True)
    pq.write_table(pa.Table.from_pylist(rows), path)
    return path


def removed_shard(root, stage, reasons):
    return shard(root, stage, "removed", [
        {"id": f"{list(SOURCES)[n % 4]}/part-{n}{HOSTILE if n == 1 else ''}#{n}", "text": TEXTS[n % len(TEXTS)],
         "reason": reason, "evidence": "0.42" if n % 2 else ""}
        for reason in reasons for n in range(7)
    ])


def quarantine_shard(root):
    row = {"source": "forum", "file": f"2019/{HOSTILE}.jsonl", "reason": "not_json", "sample": '{"text": "b'}
    return shard(root, "ingest", "quarantine", [{**row, "position": n} for n in range(6)])


GATES = [
    {"id": "licences.allowed", "expectation": "in_set", "column": "licence", "values": [], "owner": "legal",
     "why": "A document may be trained on only under a licence that legal has let through.", "severity": "critical"},
    {"id": "documents.alphabetic_share", "expectation": "quantile_between", "column": "alphabetic_share", "min": 0.6,
     "quantile": 0.1, "owner": "data", "why": "Texts of mostly digits and marks teach little.", "severity": "critical"},
    {"id": "tokens.parity", "expectation": "between", "column": "parity", "min": 1, "max": 1, "owner": "training",
     "why": "Both engines must give the same ids.", "severity": "critical"},
    {"id": "representation.gender", "expectation": "between", "column": "axis_share", "min": 0.3, "max": 0.7,
     "mostly": 0.9, "owner": "fairness", "severity": "warning", "why": "Neither side should all but vanish."},
]


REFUSED = "8,328 documents of source forum are in the corpus under licence NOASSERTION, which the policy does not allow"


def audit_files(folder, passing):
    licence = "pass" if passing else "fail"
    results = [
        ("documents.alphabetic_share", "clean/documents/000000", "pass", 0.7312, 61000, 0, ""),
        ("licences.allowed", "licences", licence, None, 4, 0 if passing else 1, "" if passing else REFUSED),
        ("representation.gender", "representation", "inconclusive", 0.41, 12, 0, HOSTILE),
        ("tokens.parity", "tokens", "pass", 1.0, 1, 0, ""),
    ]
    names = ("gate", "subject", "status", "observed", "rows", "unexpected", "detail")
    rows = []
    for index, group in enumerate(["women", "men", "older people", "younger people", HOSTILE]):
        centre, known = 0.02 + 0.018 * index, index != 4
        rows.append({
            "language": "en", "axis": "gender" if index < 2 else "age", "group": group, "axis_share": 0.4,
            "documents": 1204 + 311 * index, "mentions": 4021 + 800 * index, "share": centre if known else None,
            "share_low": centre - 0.004 if known else None, "share_high": centre + 0.004 if known else None,
            "per_million_words": 312.44, "conclusive": index != 3,
        })
    write_json(folder / "results.json", [dict(zip(names, row, strict=True)) for row in results])
    write_json(folder / "sources.json", [])
    write_json(folder / "licences.json", LICENCES)
    write_json(folder / "representation.json", {"rows": rows, "min_documents": 30})
    return [folder / name for name in ("results.json", "sources.json", "licences.json", "representation.json")]


def metrics(folder, steps):
    """Two attempts, the first of which was killed a few steps after its checkpoint."""
    draw = random.Random(5)

    def record(event, attempt, step, **values):
        append_line(folder / "metrics.jsonl", json.dumps({"event": event, "attempt": attempt, "step": step, **values}))

    record("start", 1, 0, peak_source="measured: best 1024^3 product")
    for attempt, first, last in ((1, 1, steps // 2 + 7), (2, steps // 2, steps)):
        for step in range(first, last + 1):
            fall = math.exp(-step / 120)
            record("step", attempt, step, loss=4.2 + 6.2 * fall + draw.gauss(0, 0.05), mfu=0.41 + draw.gauss(0, 0.01),
                   lr=1e-3 * min(1, step / 50) * (1 - step / steps / 1.1), grad_norm=1 + draw.random() / 2,
                   tokens=8192 * step, tokens_per_second=4000 + draw.gauss(0, 90))
            if step % 100 == 0:
                record("validation", attempt, step, loss=4.3 + 6 * fall, bits_per_byte=1.4 + fall)


def ledger(root):
    path = host_ledger(root / "energy.jsonl", "node1")

    def line(kind, interval, stage, second, count, **values):
        at = f"2026-01-01T00:{second // 60:02d}:{second % 60:02d}.000Z"
        about = {"interval": interval, "attempt": interval, "stage": stage, "host": "node1", "process": [1, 0]}
        energy = {"method": ESTIMATED, "millijoules": count, "low": count // 3, "high": count * 2}
        append_line(path, json.dumps({"kind": kind, **about, "at": at, **energy, **values}))

    kept, lost = {"outcome": "surviving", "cause": ""}, {"outcome": "wasted", "cause": "KeyError"}
    train = {"artifact": f"train/{key_of('train')[:16]}", "resumed_from": 0}
    line("end", "a", "clean", 40, 1_204_500, **kept)
    line("begin", "b", "train", 50, 0, marks=train)
    line("beat", "b", "train", 60, 900_123, marks={**train, "step": 310, "checkpoint": 300})
    line("end", "b", "train", 70, 1_000_000, marks={**train, "step": 330, "checkpoint": 300}, **lost)
    again = {**train, "resumed_from": 300}
    line("begin", "c", "train", 80, 0, marks=again)
    line("end", "c", "train", 140, 850_000, marks={**again, "step": 600, "checkpoint": 600}, **kept)
    line("end", "f", "fetch", 145, 5_250, **kept)  # of a stage that has no artifact in the report
    line("begin", "r", "report", 150, 0)
    line("end", "r", "report", 151, 999_999_999, **kept)


def corpus(root, passing=True):
    sources = [{"name": name, "type": "jsonl", "licence": "NOASSERTION" if name == "wikipedia" else licence}
               for name, (licence, _, _) in SOURCES.items()]
    names = [*(f"{name}/0.jsonl.zst" for name in SOURCES), f"forum/{HOSTILE}.jsonl"]
    files = [Input(stage="file", digest=f"{n:02x}" * 32, path=name) for n, name in enumerate(names)]
    alive = {name: (count, count * size) for name, (_, count, size) in SOURCES.items()}
    made = {}

    def add(stage, inputs, stats, config=None, files=(), joules=None):
        energy = None if joules is None else energy_of(joules)
        made[stage] = manifest_of(root, stage, inputs, stats, config, files, energy)
        return [made[stage].as_input()]

    stats, alive = funnel_stage(alive, {"quarantine:not_json": 0.002}, 1)
    raw = add("ingest", files, stats, {"sources": sources}, [quarantine_shard(root)], 182.25)
    cuts = {"too_short": 0.11, "repeated_lines": 0.04, "wrong_language": 0.06, "few_stop_words": 0.02, HOSTILE: 0.004}
    stats, alive = funnel_stage(alive, cuts, 2)
    cleaned = add("clean", raw, stats, {}, [removed_shard(root, "clean", cuts)], 1204.5)
    cuts = {"near_duplicate": 0.12, "exact_duplicate": 0.05}
    stats, alive = funnel_stage(alive, cuts, 3)
    unique = add("dedup", cleaned, stats, {}, [removed_shard(root, "dedup", cuts)], 377.001)
    stats, alive = funnel_stage(alive, {}, 4)
    redacted = add("redact", unique, stats, joules=90.0)
    tokenizer = add("tokenizer", redacted, {"vocabulary_size": 32000, "parity": 1})
    tokens = {"train_tokens": 48_812_034, "validation_tokens": 502_311}
    encoded = add("encode", redacted + tokenizer, {**stats, **tokens}, joules=33.5)
    policy = {"name": "assay-default", "licences": {"allowed": ["CC0-1.0", "CC-BY-SA-4.0", "MIT"]}, "gate": GATES}
    add("audit", encoded, {}, {"policy": policy}, audit_files(folder_of(root, "audit"), passing), 12.0)
    return made


def trained(root, made, steps=600):
    folder = folder_of(root, "train")
    metrics(folder, steps)
    write_json(folder / "losses.json", {})
    stats = {"steps": steps, "tokens": 8192 * steps, "parameters": 10_712_448, "final_loss": 4.2107,
             "validation_loss": 4.3402, "bits_per_byte": 1.41855,
             "checkpoint": {"path": "checkpoint/abcd/manifest.json", "digest": "cd" * 32}}
    inputs, files = [made["encode"].as_input()], [folder / "losses.json"]
    run = {"execution": {"world_size": 2, "device": "cpu", "zero_stage": 1}}
    train = manifest_of(root, "train", inputs, stats, {}, files, energy_of(1850.0), run)
    manifest_of(root, "checkpoint", inputs, {}, {"train_key": train.key, "step": 600}, files)
    return train


def verdict_of(made, word):
    row = {"gate": "licences.allowed", "subject": "licences", "status": "fail", "severity": "critical",
           "owner": "legal", "detail": REFUSED if word == "BLOCK" else f"forum: {HOSTILE}", "waived": word == "WAIVED"}
    waiver = {"gate": "licences.allowed", "subject": made["encode"].digest, "reason": f"agreed {HOSTILE}",
              "approver": "legal-counsel", "expires": "2027-01-31"}
    return {
        "verdict": word, "policy": {"name": "assay-default", "digest": "ab" * 32},
        "audit": {"path": made["audit"].path, "digest": made["audit"].digest},
        "corpus": {"path": made["encode"].path, "digest": made["encode"].digest},
        "summary": {"pass": 2, "fail": 1, "inconclusive": 1},
        "reasons": [] if word == "PASS" else [row], "waivers": [waiver] if word == "WAIVED" else [],
        "signed_at": "2026-11-24T10:05:00Z", "expires": "2026-12-24T10:05:00Z", "key_id": "sha256:0011223344556677",
        "subjects": {made["encode"].path: made["encode"].digest},
    }
# fmt: on


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    root = tmp_path_factory.mktemp("root")
    made = corpus(root)
    made["train"] = trained(root, made)
    ledger(root)
    return root, made, report(made, verdict_of(made, "WAIVED"), root, Runtime(root))


@pytest.fixture(scope="module")
def closed(tmp_path_factory):
    root = tmp_path_factory.mktemp("closed")
    made = corpus(root, passing=False)
    return root, made, report(made, verdict_of(made, "BLOCK"), root, Runtime(root))


def html_of(run):
    root, _, manifest = run
    return (root / manifest.folder / "report.html").read_text(encoding="utf-8")


class Page(HTMLParser):
    """Checks that tags balance, and collects them."""

    def __init__(self, text):
        super().__init__(convert_charrefs=True)
        self.open, self.tags, self.words, self.ids = [], [], [], []
        self.feed(text)
        self.close()
        assert self.open == []

    def handle_starttag(self, tag, attrs):
        self.tags.append((tag, dict(attrs)))
        if tag not in VOID:
            self.open.append(tag)

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        self.words.append(data)

    def named(self, name):
        return [attributes for tag, attributes in self.tags if tag == name]


@pytest.mark.parametrize("name", ["whole", "closed"])
def test_the_page_is_well_formed_and_loads_nothing(name, request):
    text = html_of(request.getfixturevalue(name))
    page = Page(text)
    assert text.startswith("<!DOCTYPE html>")
    assert page.named("html") == [{"lang": "en"}]
    assert page.named("title")
    assert not {"script", "link", "iframe", "object", "embed", "img", "base", "form"} & {tag for tag, _ in page.tags}
    for _, attributes in page.tags:
        assert not [key for key in attributes if key in ("src", "srcset", "action") or key.startswith("on")]
        assert attributes.get("href", "#").startswith("#")
    assert not re.search(r"https?://|url\(|@import", text)
    ids = [attributes["id"] for _, attributes in page.tags if "id" in attributes]
    assert len(ids) == len(set(ids))
    assert {attributes["href"][1:] for attributes in page.named("a")} <= set(ids)


def test_it_can_be_read_without_eyes_and_without_a_mouse(whole):
    page = Page(html_of(whole))
    assert page.named("th")
    assert all(attributes.get("scope") in ("row", "col") for attributes in page.named("th"))
    assert len(page.named("caption")) == len(page.named("table"))
    assert page.named("svg")
    assert all(drawing.get("role") == "img" and drawing.get("aria-label") for drawing in page.named("svg"))
    assert len(page.named("h1")) == 1
    assert "prefers-color-scheme:dark" in html_of(whole)


def test_hostile_text_is_only_text(whole):
    text = html_of(whole)
    assert "<script" not in text
    assert text.count("&lt;script&gt;alert(") >= 7  # ids, reasons, samples, file names, checks, groups, verdict
    assert "\x00" not in text
    assert "onload=&quot;x" in text
    assert not [attributes for _, attributes in Page(text).tags if "onload" in attributes]


def test_personal_data_in_samples_is_masked(whole):
    text = html_of(whole)
    root, _, manifest = whole
    for found in (text, (root / manifest.folder / "report.json").read_text(encoding="utf-8")):
        assert "jane.doe" not in found
        assert "7946 0958" not in found
        assert "[e-mail]" in found
        assert "[digits]" in found


def test_page_and_json_hold_the_same_summary(whole):
    root, _, manifest = whole
    summary = json.loads((root / manifest.folder / "report.json").read_bytes())["summary"]
    output = " ".join(Page(html_of(whole)).words)
    assert summary["energy_joules"] == 3059.75  # 1,204.5 + 1,000 + 850 + 5.25: without the making of the report itself
    assert summary["energy_wasted_joules"] == 99.877
    # kWh and grams are written in units that fit; without factors carbon is unknown
    for name, value in ((name, summary[name]) for name in summary if not name.endswith(("_kwh", "_grams"))):
        assert value is not None, name
        if isinstance(value, str):
            assert value in output
        else:
            written = f"{value:,}" if isinstance(value, int) else f"{value:,.3f}"
            assert re.search(rf"(?<![\d,.]){re.escape(written)}(?!\d)", output), (name, written)


def test_what_is_judged_is_in_the_page(whole):
    output = " ".join(Page(html_of(whole)).words)
    for word in (
        "WAIVED", "legal-counsel", "2027-01-31", "sha256:0011223344556677", "estimated", "NOASSERTION", "node1",
        "not allowed, but in the corpus", "near_duplicate", "0.1 quantile of alphabetic_share ≥ 0.6",
        "Neither side should", "inconclusive", "2.9.1", "KeyError", "fetch", "Personal data", "torch", "step 600",
        "measured: best 1024^3 product",
    ):  # fmt: skip
        assert word in output, word


def test_a_closed_gate_still_gives_a_report_and_says_so(closed):
    root, _, manifest = closed
    text = html_of(closed)
    assert "The corpus may not be trained on. Nothing was trained." in text
    assert 'class="badge bad"' in text
    found = json.loads((root / manifest.folder / "report.json").read_bytes())
    assert found["training"] is None
    assert found["energy"]["total"]["from"] == "manifests"
    assert found["energy"]["total"]["high"] is None  # the tokenizer's energy is unknown, so there is no upper bound
    assert "no upper bound" in text
    assert [row["fate"] for row in found["sources"]] == ["kept", "kept", "refused: licence", "kept"]
    assert found["sources"][0]["licences"] == {"CC-BY-SA-4.0": 40_000, "CC0-1.0": 2_000}
    assert "CC-BY-SA-4.0 (40,000), CC0-1.0 (2,000)" in text


def test_an_open_gate_without_training_says_that(tmp_path):
    made = corpus(tmp_path)
    manifest = report(made, verdict_of(made, "PASS"), tmp_path, Runtime(tmp_path))
    assert "Not trained yet." in html_of((tmp_path, made, manifest))


def test_it_is_an_artifact_like_any_other(whole):
    root, made, manifest = whole
    assert verify(manifest, root) == []
    assert read_manifest(root / manifest.path).digest == manifest.digest
    assert {item.stage for item in manifest.inputs} == set(made)
    again = report(made, verdict_of(made, "WAIVED"), root, Runtime(root, make=False))
    assert again.digest == manifest.digest


def test_a_broken_shard_or_audit_is_named(tmp_path):
    made = corpus(tmp_path / "a")
    shutil.copytree(tmp_path / "a", tmp_path / "b")
    made["clean"].files("removed", tmp_path / "a")[0].write_bytes(b"PAR1")
    with pytest.raises(ManifestError, match=r"removed/000000\.parquet"):
        report(made, {}, tmp_path / "a", Runtime(tmp_path / "a"))
    Path(tmp_path / "b" / made["audit"].folder / "results.json").write_bytes(b"{")
    with pytest.raises(ManifestError, match=r"results\.json"):
        report(made, {}, tmp_path / "b", Runtime(tmp_path / "b"))
