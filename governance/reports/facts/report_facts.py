"""Facts of a report (report.json), from manifests, verdict, audit, ledger.

This module only gathers; it neither judges nor measures. `summary` is the content of page one.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from governance.energy.factors import Factors
from governance.errors import read_errors
from governance.gate.explanation import policy_words, signer_words, site_words
from governance.gate.gate_expectations import NEEDS
from governance.manifest import Manifest
from governance.reports.facts.citations import origins
from governance.reports.facts.cluster_jobs import cluster_facts
from governance.reports.facts.distributions import distributions, language_counts
from governance.reports.facts.energy_totals import energy_facts
from governance.reports.facts.evidence_ids import Entry, as_of, collect_entries, running_of
from governance.reports.facts.faults import fault_facts
from governance.reports.facts.problems import first_look
from governance.reports.facts.samples import (
    Mask,
    kept_samples,
    mask,
    masked_example,
    quarantine_samples,
    removed_samples,
)
from governance.reports.facts.stage_counts import stage_tables
from governance.reports.facts.synthetic_facts import synthetic_facts
from governance.reports.facts.training_facts import classifies, training_facts
from governance.stage_order import STAGES

_OF_TOKENS = ("tokenizer", "encode", "pack")
_COUNTS = ("documents_in", "documents_kept", "bytes_in", "bytes_kept")


@dataclass(frozen=True)
class ReportInputs:
    """Inputs of a report besides artifacts and verdict."""

    factors: Factors | None = None
    """Conversion of energy into carbon and water."""
    begun: str = ""
    """Folder of an unfinished training; "" for none."""
    name: str = ""
    """Name of the run."""
    replays: tuple[str, ...] = ()
    """Folders of the trainings that repeat this one without some documents."""


def facts(
    artifacts: Mapping[str, Manifest],
    verdict: Mapping[str, Any],
    root: Path,
    rules: Mask = mask,
    extra: ReportInputs | None = None,
    stated: Sequence[Entry] | None = None,
) -> dict[str, Any]:
    """Content of report.json.

    Args:
        artifacts: stage -> manifest.
        verdict: the signed decision's content.
        root: the artifacts' root.
        rules: mask personal data in examples.
        extra: further inputs.
        stated: evidence of an existing report; growing files are then read only as far as it read them.

    Raises:
        ManifestError: an artifact's file cannot be read.
    """
    manifests, extra = in_order(artifacts), extra or ReportInputs()
    entries = collect_entries(manifests, verdict, root, stated, extra.begun)
    running = running_of(entries)

    def alive(line: Mapping[str, Any]) -> bool:
        return line["interval"] in running

    funnel = funnel_of(manifests)
    audit = artifacts.get("audit")
    policy = audit.config.get("policy", {}) if audit else {}
    results = _read(audit, "results.json", root)
    found: dict[str, Any] = {
        "schema": 1,
        "run": {"name": extra.name, "finished": max((str(m.run.get("finished") or "") for m in manifests), default="")},
        "verdict": dict(verdict),
        "funnel": funnel,
        "languages": language_counts(artifacts, root),
        "removed": [
            {"stage": manifest.stage, "examples": removed_samples(manifest, root, rules)}
            for manifest in manifests
            if manifest.files("removed", root)
        ],
        "counts": stage_tables(manifests),
        "kept": kept_samples(artifacts["redact"], root, rules) if "redact" in artifacts else [],
        "distributions": [histogram for manifest in manifests for histogram in distributions(manifest, root)],
        "quarantined": quarantine_samples(artifacts["ingest"], root, rules) if "ingest" in artifacts else {},
        "sources": sources(artifacts.get("ingest"), funnel, policy, _read(audit, "licences.json", root) or []),
        "synthetic": synthetic_facts(artifacts),
        "owners": policy.get("owners", {}),
        "licences_allowed": policy.get("licences", {}).get("allowed", []),
        "gates": gates(policy, results),
        "checks": checks(results, verdict),
        "representation": _read(audit, "representation.json", root),
        "bias": bias_of(artifacts, root),
        "findings": findings_of(artifacts, root, rules),
        "instruments": instruments_of(artifacts),
        "tokens": {stage: scalars(artifacts[stage].stats) for stage in _OF_TOKENS if stage in artifacts},
        "begun": extra.begun or None,
        "lineage": [_lineage(manifest) for manifest in manifests],
        "environment": environment(manifests),
    }
    if "data_docs" in artifacts:
        found["data_docs"] = f"{artifacts['data_docs'].folder}/index.html"
    found["memorisation"] = artifacts["memorisation"].stats if "memorisation" in artifacts else None
    if "verbatim" in artifacts:  # absent otherwise, so that earlier reports recompute
        found["verbatim"] = artifacts["verbatim"].stats
    found["kpi"] = _kpi_facts(artifacts)
    with as_of(root, entries) as then:
        found |= {
            "training": training_facts(artifacts["train"], then) if "train" in artifacts else None,
            "energy": energy_facts(manifests, then, extra.factors, alive),
            "faults": fault_facts(artifacts.get("train"), then, alive, extra.begun),
            "cluster": cluster_facts(then),
        }
    if found["training"] is not None and "training_audit" in artifacts:
        found["training"]["audit"] = artifacts["training_audit"].stats
    if found["training"] is not None and extra.replays:
        found["training"]["replays"] = extra.replays
    found["summary"] = summary(found)
    found["first"] = first_look(found)
    found["evidence"] = {"entries": list(entries), "of": origins(found, entries)}
    return found


def _kpi_facts(artifacts: Mapping[str, Manifest]) -> dict[str, Any] | None:
    """Plan and test of the KPIs; None without either."""
    plan, test = artifacts.get("kpi_plan"), artifacts.get("kpi_test")
    if plan is None and test is None:
        return None
    planned = None if plan is None else {"stats": plan.stats, "config": plan.config}
    return {"plan": planned, "test": None if test is None else test.stats}


def in_order(artifacts: Mapping[str, Manifest]) -> list[Manifest]:
    """The artifacts in the order of a run; others follow by name."""
    place = {row.name: index for index, row in enumerate(STAGES)}
    return sorted(artifacts.values(), key=lambda manifest: (place.get(manifest.stage, len(STAGES)), manifest.stage))


def funnel_of(manifests: Sequence[Manifest]) -> list[dict[str, Any]]:
    """Documents and bytes entering, kept and removed, by stage.

    The removed ones are listed by reason and source.
    """
    return [_funnel(manifest) for manifest in manifests if set(_COUNTS) <= set(manifest.stats)]


def bias_of(artifacts: Mapping[str, Manifest], root: Path) -> dict[str, list[dict[str, Any]]]:
    """The interval tables of the bias audit, by suite; empty without one.

    Raises:
        ManifestError: they cannot be read.
    """
    return _read(artifacts.get("bias"), "tables.json", root) or {}


def instruments_of(artifacts: Mapping[str, Manifest]) -> dict[str, dict[str, str]]:
    """Kind and digest of the bias audit's lists and classifiers."""
    config = artifacts["bias"].config if "bias" in artifacts else {}
    lists = {name: {"kind": "word list", "digest": digest} for name, digest in config.get("lists", {}).items()}
    models = config.get("classifiers", {}).items()
    return lists | {name: {"kind": "classifier", "digest": of["model"]} for name, of in models}


def findings_of(artifacts: Mapping[str, Manifest], root: Path, rules: Mask) -> list[dict[str, Any]]:
    """Findings of the bias audit with masked examples.

    They are empty without an audit, or for one that an older release made.

    Raises:
        ManifestError: they cannot be read.
    """
    bias = artifacts.get("bias")
    if bias is None or not any(output.path.endswith("/findings.json") for output in bias.outputs):
        return []
    return [
        {**row, "examples": [masked_example(example, rules) for example in row["examples"]]}
        for row in _read(bias, "findings.json", root)
    ]


def _funnel(manifest: Manifest) -> dict[str, Any]:
    stats = manifest.stats

    def counts(entry: Mapping[str, Any]) -> dict[str, Any]:
        removed = dict(sorted(entry.get("removed", {}).items()))
        return {**{name: entry.get(name, 0) for name in _COUNTS}, "removed": removed}

    by_source = {name: counts(entry) for name, entry in sorted(stats.get("by_source", {}).items())}
    return {"stage": manifest.stage, **counts(stats), "by_source": by_source}


def sources(
    ingest: Manifest | None, funnel: list[dict[str, Any]], policy: Mapping[str, Any], held: Sequence[Mapping[str, Any]]
) -> list[dict[str, Any]]:
    """Each configured source: licences, whether the policy allows them, what remains.

    `licences` counts the kept documents by their own licence; it is the configured one where the audit has none.
    `held` are the audit's rows of kept documents (source, licence, documents). `fate` is "kept", "refused: licence", or
    "nothing left".
    """
    if ingest is None:
        return []
    allowed = set(policy.get("licences", {}).get("allowed", []))
    rows = []
    for source in ingest.config.get("sources", []):
        name = str(source.get("name"))
        first = funnel[0]["by_source"].get(name, {}) if funnel else {}
        last = funnel[-1]["by_source"].get(name, {}) if funnel else {}
        kept = last.get("documents_kept", 0)
        licences = {row["licence"]: row["documents"] for row in held if row["source"] == name}
        licences = licences or {str(source.get("licence", "NOASSERTION")): kept}
        refused = bool(policy) and not allowed.issuperset(licences)
        rows.append(
            {
                "name": name,
                "kind": source.get("type"),
                "licences": licences,
                "documents_in": first.get("documents_in", 0),
                "quarantined": sum(first.get("removed", {}).values()),
                "documents_kept": kept,
                "bytes_kept": last.get("bytes_kept", 0),
                "fate": "refused: licence" if refused else "kept" if kept else "nothing left",
            }
        )
    return rows


def gates(policy: Mapping[str, Any], results: Any) -> dict[str, dict[str, Any]]:
    """Threshold, severity, owner and reason of each gate that has a result."""
    known = {gate["id"]: gate for gate in policy.get("gate", [])}
    return {
        name: {
            "threshold": threshold(known.get(name, {})),
            "severity": known.get(name, {}).get("severity", "critical"),
            "owner": known.get(name, {}).get("owner", "unknown"),
            "why": known.get(name, {}).get("why", ""),
        }
        for name in sorted({result["gate"] for result in results or []})
    }


def checks(results: Any, verdict: Mapping[str, Any]) -> list[dict[str, Any]]:
    """Audit results with waivers, passes last."""
    waived = {
        (reason.get("gate"), reason.get("subject")) for reason in verdict.get("reasons", []) if reason.get("waived")
    }
    rows = [{**result, "waived": (result["gate"], result["subject"]) in waived} for result in results or []]
    return sorted(rows, key=lambda row: (row["status"] == "pass", row["gate"], row["subject"]))


def threshold(gate: Mapping[str, Any]) -> str:
    """A gate's threshold as text."""
    if not gate:
        return "unknown"
    if gate.get("gx"):
        named = {**({"column": gate["column"]} if gate.get("column") else {}), **gate.get("kwargs", {})}
        return f"{gate['gx']}({', '.join(f'{name}={json.dumps(value)}' for name, value in named.items())})"
    low, high = gate.get("min"), gate.get("max")
    column = NEEDS[gate["expectation"]].subject.format(**{"column": "", **gate})
    if low is not None and high is not None:
        text = f"{column} from {low:.15g} to {high:.15g}"
    elif low is not None or high is not None:
        text = f"{column} ≥ {low:.15g}" if low is not None else f"{column} ≤ {high:.15g}"
    elif gate.get("regex"):
        text = f"{column} matches {gate['regex']}"
    elif gate.get("values"):
        text = f"{column}: {', '.join(gate['values'])}"
    else:
        text = f"{gate['expectation'].replace('_', ' ')} {column}".strip()
    mostly = gate.get("mostly", 1.0)
    return text if mostly == 1.0 else f"{text}, in {100 * mostly:.12g} % of rows"


def _lineage(manifest: Manifest) -> dict[str, Any]:
    return {
        "stage": manifest.stage,
        "digest": manifest.digest,
        "path": manifest.path,
        "inputs": [item.model_dump(mode="json") for item in manifest.inputs],
        "files": len(manifest.outputs),
        "bytes": sum(output.bytes for output in manifest.outputs),
        "started": manifest.run.get("started"),
        "finished": manifest.run.get("finished"),
        "command": manifest.run.get("command"),
    }


def environment(manifests: list[Manifest]) -> dict[str, Any]:
    """Software and hardware of the artifacts, with stages where they differ."""
    packages: dict[str, dict[str, list[str]]] = {}
    places: dict[str, dict[str, list[str]]] = {}
    for manifest in manifests:
        run = manifest.run
        git = run.get("git") or {}
        host = run.get("host") or {}
        commit = f"{git['commit']}{' (with uncommitted changes)' if git.get('dirty') else ''}" if git else "unknown"
        values = {
            "host": " · ".join(str(host[name]) for name in ("name", "system") if host.get(name)) or "unknown",
            "processors": str(host.get("cpus", "unknown")),
            "python": str(run.get("python", "unknown")),
            "commit": commit,
            "slurm job": str(run.get("slurm_job_id") or "none"),
        }
        for name, value in values.items():
            places.setdefault(name, {}).setdefault(value, []).append(manifest.stage)
        for name, version in sorted((run.get("packages") or {}).items()):
            packages.setdefault(name, {}).setdefault(str(version), []).append(manifest.stage)
    return {"places": places, "packages": dict(sorted(packages.items()))}


def scalars(stats: Mapping[str, Any]) -> dict[str, Any]:
    """Scalar stats of a stage other than its funnel."""
    return {
        name: value for name, value in stats.items() if name not in _COUNTS and isinstance(value, (int, float, str))
    }


def summary(facts: Mapping[str, Any]) -> dict[str, Any]:
    """Figures of page one; None is unknown or absent."""
    funnel, training = facts["funnel"], facts["training"]
    stats = training["stats"] if training else {}
    encode = facts["tokens"].get("encode", {})
    total = facts["energy"]["total"]
    first, last = (funnel[0], funnel[-1]) if funnel else ({}, {})
    return {
        "verdict": facts["verdict"].get("verdict", "NOT_RUN"),
        "policy": policy_words(facts["verdict"]) if "policy" in facts["verdict"] else "no policy",
        "site": site_words(facts["verdict"]),
        "signer": signer_words(facts["verdict"]) if facts["verdict"] else "not signed",
        "documents_in": first.get("documents_in"),
        "documents_kept": last.get("documents_kept"),
        "bytes_in": first.get("bytes_in"),
        "bytes_kept": last.get("bytes_kept"),
        "train_tokens": encode.get("train_tokens"),
        "validation_tokens": encode.get("validation_tokens"),
        "steps": stats.get("steps"),
        "tokens_trained": stats.get("tokens"),
        "final_loss": stats.get("final_loss"),
        "validation_loss": stats.get("validation_loss"),
        "bits_per_byte": None if training and classifies(training["config"]) else stats.get("bits_per_byte"),
        "energy_joules": total["joules"],
        "energy_low_joules": total["low"],
        "energy_high_joules": total["high"],
        "energy_wasted_joules": total["wasted"],
        "energy_kwh": total["kwh"]["value"],
        "energy_low_kwh": total["kwh"]["low"],
        "energy_high_kwh": total["kwh"]["high"],
        "energy_wasted_kwh": total["wasted_kwh"],
        "carbon_grams": total["carbon"]["value"],
        "carbon_low_grams": total["carbon"]["low"],
        "carbon_high_grams": total["carbon"]["high"],
        "carbon_wasted_grams": total["wasted_carbon"]["value"],
        "carbon_basis": facts["energy"]["footprint"]["basis"],
    }


def _read(audit: Manifest | None, name: str, root: Path) -> Any:
    """One of an audit's files; None where there is no audit."""
    if audit is None:
        return None
    path = root / audit.folder / name
    with read_errors(path, fix="Remove its folder and audit again."):
        return json.loads(path.read_bytes())
