"""Citations: evidence behind each number of report.json (RFC 6901).

    "/funnel/2": {"from": ["E4"], "key": "stats", "how": "copied"}

applies to everything below that place: `/funnel/2/documents_in` is `stats.documents_in` of E4. A "copied" value is
unchanged; a "counted" one was summed, sampled or combined. A place without a line of its own inherits from the nearest
place above it, so every number has an origin.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from governance.reports.facts.evidence_ids import Entry
from governance.reports.html.markup import Html, tag

LISTED = 300
"""Evidence entries that the page lists; report.json has all."""
_IDS, _KEYS = 12, 3  # ids and keys in a mark's tooltip; report.json has all

Origin = dict[str, Any]
_ENERGY_SUMMARY = ("energy_", "carbon_")
_COUNTS = ("documents", "bytes")


def origins(facts: Mapping[str, Any], entries: Sequence[Entry]) -> dict[str, Origin]:
    """Place -> origin, for every value of `found`."""
    by_stage = {str(entry["path"]).partition("/")[0]: entry["id"] for entry in entries if entry["kind"] == "manifest"}
    kinds: dict[str, list[str]] = {}
    for entry in entries:
        kinds.setdefault(_kind(entry, facts), []).append(entry["id"])
    tables = {str(entry["path"]).rpartition("/")[2]: entry["id"] for entry in entries if entry["kind"] == "table"}
    manifests = kinds.get("manifest", [])
    made: dict[str, Origin] = {"": _origin(manifests, "")}

    def add(place: str, sources: Iterable[str | None], key: str, how: str = "counted") -> None:
        made[place] = _origin([source for source in sources if source], key, how)

    def stages(name: str, key: str, how: str = "counted") -> None:
        for index, row in enumerate(facts[name]):
            add(f"/{name}/{index}", [by_stage.get(row["stage"])], key.format(**row), how)

    add("/verdict", kinds.get("verdict", []), "", "copied")
    stages("funnel", "stats", "copied")
    stages("removed", "outputs: removed")
    stages("distributions", "outputs: {name}")
    stages("lineage", "inputs, outputs, run")
    for index, row in enumerate(facts["counts"]):
        add(f"/counts/{index}", [by_stage.get(row["title"].partition(":")[0])], "stats")
    after = [stage for row in facts["languages"][:1] for stage in row["documents_after"] if stage != "clean"]
    by_language = [by_stage.get(stage) for stage in dict.fromkeys(["clean", *after, "encode"])]
    add("/languages", by_language, "outputs: features, removed; stats.by_language")
    add("/kept", [by_stage.get("redact")], "outputs: documents")
    add("/quarantined", [by_stage.get("ingest")], "outputs: quarantine")
    last = [by_stage.get(facts["funnel"][-1]["stage"])] if facts["funnel"] else []
    for index, row in enumerate(facts["sources"]):
        held = [by_stage.get("ingest"), *last, tables.get("licences.json")]
        add(f"/sources/{index}", held, f"stats.by_source.{row['name']}")
    add("/synthetic", [by_stage.get("ingest"), *last, by_stage.get("encode")], "stats.synthetic; tokens_by_source")
    add("/checks", [tables.get("results.json"), by_stage.get("audit")], "gate, subject")
    add("/gates", [by_stage.get("audit")], "config.policy.gate")
    add("/representation", [tables.get("representation.json")], "", "copied")
    add("/bias", [tables.get("tables.json")], "", "copied")
    add("/findings", [tables.get("findings.json")], "", "copied")
    add("/instruments", [by_stage.get("bias")], "config.lists, config.classifiers", "copied")
    for stage in facts["tokens"]:
        add(f"/tokens/{stage}", [by_stage.get(stage)], "stats", "copied")
    _training(facts, kinds, by_stage, add)
    _energy(facts, kinds, by_stage, add)
    add("/memorisation", [by_stage.get("memorisation")], "stats", "copied")
    if "verbatim" in facts:
        add("/verbatim", [by_stage.get("verbatim")], "stats", "copied")
    add("/kpi", [by_stage.get("kpi_test"), by_stage.get("kpi_plan")], "stats", "copied")
    add("/cluster", kinds.get("cluster", []), "")
    add("/faults", [*kinds.get("record", []), *kinds.get("ledger", [])], "event")
    add("/environment", manifests, "run")
    for index, row in enumerate(facts["first"]):
        made[f"/first/{index}"] = _nearest(made, row["at"])
    _summary(facts, made, by_stage, add)
    return made


def _kind(entry: Entry, facts: Mapping[str, Any]) -> str:
    """Kind of an entry; a parent training's record is an ancestor."""
    own = (facts["training"] or {}).get("path") or facts["begun"]
    return "ancestor" if entry["kind"] == "record" and not entry["path"].startswith(f"{own}/") else str(entry["kind"])


def _origin(sources: Sequence[str], key: str, how: str = "counted") -> Origin:
    return {"from": list(dict.fromkeys(sources)), "key": key, "how": how}


def _training(facts: Mapping[str, Any], kinds: Mapping[str, list[str]], by_stage: Mapping[str, str], add: Any) -> None:
    if facts["training"] is None:
        return
    train, record = by_stage.get("train"), kinds.get("record", [])
    add("/training", [train, *record], "stats, start")
    add("/training/stats", [train], "stats", "copied")
    add("/training/config", [train], "config", "copied")
    add("/training/execution", [train], "run.execution", "copied")
    add("/training/origin", [train], "run.origin", "copied")
    add("/training/curves", record, "step, validation")
    add("/training/validation", record, "validation.by_source, validation.by_language")
    add("/training/attempts", record, "attempt")
    add("/training/profiles", record, "profile", "copied")
    if "audit" in facts["training"]:
        add("/training/audit", [by_stage.get("training_audit")], "stats", "copied")
    if "replays" in facts["training"]:
        add("/training/replays", [], "replay of the journal's lines", "copied")
    for index, _ in enumerate(facts["training"]["checkpoints"]):
        add(f"/training/checkpoints/{index}", kinds.get("checkpoint", [])[index : index + 1], "config, outputs")


def _energy(facts: Mapping[str, Any], kinds: Mapping[str, list[str]], by_stage: Mapping[str, str], add: Any) -> None:
    manifests, ledger = kinds.get("manifest", []), kinds.get("ledger", [])
    add("/energy", [*ledger, *manifests], "millijoules; run.energy")
    add("/energy/total", ledger if facts["energy"]["total"]["from"] == "ledger" else manifests, "joules")
    for name in ("phases", "wasted_by_cause"):
        add(f"/energy/{name}", ledger, "millijoules")
    with_ancestors = [*ledger, *kinds.get("record", []), *manifests, *kinds.get("ancestor", [])]
    for name in ("checkpoints", "views"):
        add(f"/energy/{name}", with_ancestors, "millijoules; inputs; tokens; run.energy")
    add("/energy/footprint", [*ledger, *manifests], "millijoules; factors of report.json")
    for index, row in enumerate(facts["energy"]["stages"]):
        add(f"/energy/stages/{index}", [by_stage.get(row["stage"]), *ledger], "run.energy; millijoules")


def _summary(facts: Mapping[str, Any], made: dict[str, Origin], by_stage: Mapping[str, str], add: Any) -> None:
    add("/summary", [by_stage.get("encode")], "stats")
    made["/summary/verdict"] = {**_nearest(made, "/verdict"), "key": "verdict"}
    for name in ("policy", "site", "signer"):
        made[f"/summary/{name}"] = {**_nearest(made, "/verdict"), "key": name}
    first, last = [(facts["funnel"][place]["stage"] if facts["funnel"] else "") for place in (0, -1)]
    for name in _COUNTS:
        add(f"/summary/{name}_in", [by_stage.get(first)], f"stats.{name}_in", "copied")
        add(f"/summary/{name}_kept", [by_stage.get(last)], f"stats.{name}_kept", "copied")
    for name in ("train_tokens", "validation_tokens"):
        add(f"/summary/{name}", [by_stage.get("encode")], f"stats.{name}", "copied")
    for name in ("steps", "final_loss", "validation_loss", "bits_per_byte"):
        add(f"/summary/{name}", [by_stage.get("train")], f"stats.{name}", "copied")
    add("/summary/tokens_trained", [by_stage.get("train")], "stats.tokens", "copied")
    for name in (name for name in facts["summary"] if name.startswith(_ENERGY_SUMMARY)):
        made[f"/summary/{name}"] = _nearest(made, "/energy/total")


def _nearest(made: Mapping[str, Origin], place: str) -> Origin:
    while place and place not in made:
        place = place.rpartition("/")[0]
    return made[place]


def origin_of(facts: Mapping[str, Any], place: str) -> Origin:
    """Origin of a place in report.json; empty without evidence."""
    evidence = facts.get("evidence")
    return _nearest(evidence["of"], place) if evidence else _origin([], "")


def cite(facts: Mapping[str, Any], *places: str) -> Html:
    """Evidence mark of a table or figure, linked to its first id."""
    chosen = [origin_of(facts, place) for place in places]
    ids = list(dict.fromkeys(name for origin in chosen for name in origin["from"]))
    if not ids:
        return Html("")
    keys = "; ".join(list(dict.fromkeys(origin["key"] for origin in chosen if origin["key"]))[:_KEYS])
    label = f"Evidence: {', '.join(ids[:_IDS])}{f' and {len(ids) - _IDS} more' if len(ids) > _IDS else ''}"
    return tag("a", "E", href=f"#{ids[0]}" if int(ids[0][1:]) <= LISTED else "#evidence", class_="ev",
               title=f"{label} ({keys})" if keys else label, aria_label=label)  # fmt: skip


def cite_each(facts: Mapping[str, Any], place: str, count: int) -> Html:
    """Evidence mark of a table with an origin per row."""
    return cite(facts, *(f"{place}/{index}" for index in range(count)))
