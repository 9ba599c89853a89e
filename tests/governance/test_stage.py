"""The nine laws of the stage contract, races and kill points included."""

import json
import multiprocessing
import os
import random
import shutil
import signal
import time
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from governance.config import Section, canonical_json
from governance.errors import ManifestError, MissingInput
from governance.files import sha256_bytes, write_bytes
from governance.manifest import Input, Manifest, describe, differences, read_manifest, verify, write_manifest
from governance.parallel import Shard, ShardMade, map_shards, sum_stats
from governance.stage import Made, Recipe, Runtime, run_stage


class Upper(Section):
    """The section of the stage under test: keep letters up to `last`, in upper case."""

    last: str = "z"


VERSION = 1


def shout(section: Upper, payload: str, path_of) -> ShardMade:
    """Keep and drop characters of one text; both are outputs, and the counts add up."""
    kept = "".join(c for c in payload if c <= section.last).upper()
    dropped = "".join(c for c in payload if c > section.last)
    write_bytes(path_of("kept"), kept.encode())
    write_bytes(path_of("removed"), dropped.encode())
    counts = {"in": len(payload), "kept": len(payload) - len(dropped), "removed": {"late": len(dropped)}}
    return ShardMade({"kept": path_of("kept"), "removed": path_of("removed")}, counts)


def slow_shout(section: Upper, payload: str, path_of) -> ShardMade:
    time.sleep(0.02)
    return shout(section, payload, path_of)


def upper(texts, config: Upper, runtime: Runtime, function=shout, version: int = VERSION) -> Manifest:
    inputs = [Input(stage="file", digest=sha256_bytes(t.encode()), path=f"{i}.txt") for i, t in enumerate(texts)]
    recipe = Recipe("upper", version, config)

    def make(folder: Path) -> Made:
        shards = [Shard(f"{i:05d}", (inputs[i].digest,), text) for i, text in enumerate(texts)]
        done = map_shards(recipe, function, shards, folder, runtime, suffix=".txt")
        outputs = [output for shard in done for output in shard.outputs.values()]
        return Made(outputs, sum_stats([shard.stats for shard in done]))

    return run_stage(recipe, inputs, runtime, make)


TEXTS = ["alpha", "beta", "gamma zulu", "", "delta"]


def test_law_1_and_3_key_follows_section_and_inputs_digest_follows_bytes(tmp_path):
    runtime = Runtime(tmp_path)
    first = upper(TEXTS, Upper(), runtime)
    other_section = upper(TEXTS, Upper(last="m"), runtime)
    other_input = upper([*TEXTS[:-1], "epsilon"], Upper(), runtime)
    assert len({first.key, other_section.key, other_input.key}) == 3
    assert len({first.digest, other_section.digest, other_input.digest}) == 3
    assert (tmp_path / "upper" / first.key[:16] / "manifest.json").exists()


@given(workers=st.integers(1, 50), command=st.text(max_size=5), make=st.booleans())
def test_law_2_runtime_enters_no_hash(workers, command, make):
    recipe = Recipe("upper", 1, Upper())
    before = recipe.key(["a"])
    Runtime(Path("somewhere"), workers=workers, command=command, make=make)
    assert recipe.key(["a"]) == before
    assert not {"workers", "root", "make", "command"} & set(Recipe.__dataclass_fields__)


def test_law_3_same_recipe_in_another_root_and_a_moved_root_give_one_digest(tmp_path):
    here = upper(TEXTS, Upper(), Runtime(tmp_path / "here"))
    there = upper(TEXTS, Upper(), Runtime(tmp_path / "there"))
    assert here.digest == there.digest
    assert differences(here, there) == []
    shutil.move(tmp_path / "here", tmp_path / "moved")
    moved = upper(TEXTS, Upper(), Runtime(tmp_path / "moved", make=False))
    assert moved.digest == here.digest
    assert verify(moved, tmp_path / "moved") == []


def test_law_4_without_a_manifest_the_artifact_is_unfinished(tmp_path):
    made = upper(TEXTS, Upper(), Runtime(tmp_path))
    (tmp_path / made.path).unlink()
    with pytest.raises(MissingInput):
        upper(TEXTS, Upper(), Runtime(tmp_path, make=False))
    assert upper(TEXTS, Upper(), Runtime(tmp_path)).digest == made.digest


def test_law_4_other_bytes_under_the_same_key_are_an_error(tmp_path):
    made = upper(TEXTS, Upper(), Runtime(tmp_path))
    recipe, inputs = Recipe("upper", VERSION, Upper()), made.inputs

    def other(folder: Path) -> Made:
        manifest = tmp_path / made.path
        kept = manifest.read_bytes()
        target = folder / "kept" / "00000.txt"
        write_bytes(target, b"OTHER")
        write_bytes(manifest, kept)
        return Made([describe(target, tmp_path)], {})

    (tmp_path / made.path).rename(tmp_path / "aside.json")

    def racing(folder: Path) -> Made:
        result = Made([describe(folder / "kept" / "00000.txt", tmp_path)], {"counts": "other"})
        (tmp_path / "aside.json").rename(tmp_path / made.path)
        return result

    with pytest.raises(ManifestError, match="the same recipe gave other bytes"):
        run_stage(recipe, inputs, Runtime(tmp_path), racing)


def test_law_5_resume_makes_only_what_is_missing(tmp_path):
    made = upper(TEXTS, Upper(), Runtime(tmp_path))
    folder = tmp_path / made.folder
    (tmp_path / made.path).unlink()
    (folder / "kept" / "00002.txt").unlink()
    stamps = {path: path.stat().st_mtime_ns for path in folder.rglob("*.txt")}
    again = upper(TEXTS, Upper(), Runtime(tmp_path))
    assert again.digest == made.digest
    remade = {p.stem for p in folder.rglob("*.txt") if stamps.get(p) != p.stat().st_mtime_ns}
    assert remade == {"00002"}


def test_law_5_changed_input_remakes_exactly_its_shard_and_links_the_rest(tmp_path):
    first = upper(TEXTS, Upper(), Runtime(tmp_path))
    changed = [*TEXTS[:2], "gamma yankee", *TEXTS[3:]]
    second = upper(changed, Upper(), Runtime(tmp_path))
    clean = upper(changed, Upper(), Runtime(tmp_path / "clean"))
    assert second.digest == clean.digest
    assert second.run["linked_from"] == [first.folder]  # which spent their energy; no digest covers it
    assert "linked_from" not in {**first.run, **clean.run}
    (tmp_path / second.path).unlink()
    assert upper(changed, Upper(), Runtime(tmp_path)).run["linked_from"] == [first.folder]
    same = [
        os.path.samefile(tmp_path / a.path, tmp_path / b.path)
        for a, b in zip(first.outputs, second.outputs, strict=True)
        if not a.path.endswith("00002.txt")
    ]
    assert all(same)


def test_law_5_an_altered_shard_is_never_served(tmp_path):
    made = upper(TEXTS, Upper(), Runtime(tmp_path))
    victim = tmp_path / made.folder / "kept" / "00001.txt"
    (tmp_path / made.path).unlink()
    victim.write_bytes(b"BETX")
    again = upper(TEXTS, Upper(), Runtime(tmp_path))
    assert again.digest == made.digest
    assert victim.read_bytes() == b"BETA"


def test_law_6_look_up_names_the_command(tmp_path):
    with pytest.raises(MissingInput, match=r"assay data prepare x\.toml"):
        upper(TEXTS, Upper(), Runtime(tmp_path, make=False, command="assay data prepare x.toml"))
    assert not (tmp_path / "upper").exists()


def test_law_6_look_up_names_other_artifacts_and_an_altered_one(tmp_path):
    made = upper(TEXTS, Upper(last="m"), Runtime(tmp_path))
    look = Runtime(tmp_path, make=False, command="assay data prepare x.toml")
    with pytest.raises(MissingInput) as error:
        upper(TEXTS, Upper(), look)
    assert str(error.value).splitlines()[1] == f"  found: {made.folder}"  # no settings: a run's file has no such stage
    with pytest.raises(MissingInput, match=f"found: {made.folder} with these settings, but its inputs, its files or"):
        upper([*TEXTS, "new"], Upper(last="m"), look)
    victim = tmp_path / made.folder / "kept" / "00001.txt"
    victim.write_bytes(b"BETAS")
    with pytest.raises(ManifestError, match=r"kept/00001\.txt: was altered or cut .* with: assay data prepare x\.toml"):
        upper(TEXTS, Upper(last="m"), look)
    victim.unlink()
    with pytest.raises(MissingInput):
        upper(TEXTS, Upper(last="m"), look)


def test_law_6_found_without_making(tmp_path):
    made = upper(TEXTS, Upper(), Runtime(tmp_path))

    def never(section, payload, path_of):
        raise AssertionError("made again")

    assert upper(TEXTS, Upper(), Runtime(tmp_path, make=False), never).digest == made.digest


def test_law_7_version_makes_another_key_and_the_bytes_are_pinned(tmp_path):
    made = upper(TEXTS, Upper(), Runtime(tmp_path))
    other = upper(TEXTS, Upper(), Runtime(tmp_path), version=2)
    assert other.key != made.key
    assert made.key[:16] == "5f1c5460be8c7e38"
    assert made.digest[:16] == "4dc5e6a14e0a4a28"


@settings(max_examples=8)
@given(texts=st.lists(st.text(max_size=30), max_size=6), order=st.randoms())
def test_law_8_merging_counts_does_not_depend_on_order(texts, order):
    parts = [{"n": len(t), "by": {t[:1]: len(t)}} for t in texts]
    mixed = list(parts)
    order.shuffle(mixed)
    assert sum_stats(parts) == sum_stats(mixed)
    half = len(parts) // 2
    assert sum_stats([sum_stats(parts[:half]), sum_stats(parts[half:])]) == sum_stats(parts)


def test_law_8_workers_do_not_change_the_digest(tmp_path):
    texts = [f"text {i} " * (i % 5) for i in range(12)]
    digests = {upper(texts, Upper(last="m"), Runtime(tmp_path / str(n), workers=n)).digest for n in (1, 2, 3)}
    assert len(digests) == 1


@settings(max_examples=30)
@given(texts=st.lists(st.text(max_size=40), min_size=1, max_size=5), last=st.characters(codec="utf-8"))
def test_law_9_what_was_removed_is_an_output_and_counts_add_up(tmp_path_factory, texts, last):
    root = tmp_path_factory.mktemp("root")
    made = upper(texts, Upper(last=last), Runtime(root))
    kept = sum(len(path.read_bytes().decode()) for path in made.files("kept", root))
    removed = sum(len(path.read_bytes().decode()) for path in made.files("removed", root))
    assert made.stats["in"] == made.stats["kept"] + made.stats["removed"]["late"] == sum(map(len, texts))
    assert removed == made.stats["removed"]["late"]
    assert kept >= made.stats["kept"]  # upper() may lengthen: ß becomes SS


def test_energy_and_run_stay_out_of_the_digest(tmp_path):
    made = upper(TEXTS, Upper(), Runtime(tmp_path))
    assert made.run["energy"]["joules"] is None
    other = made.model_copy(update={"run": {"energy": {"joules": 5.0}}})
    assert other.digest == made.digest


def test_unknown_schema_and_foreign_manifest_are_errors(tmp_path):
    made = upper(TEXTS, Upper(), Runtime(tmp_path))
    path = tmp_path / made.path
    values = json.loads(path.read_bytes())
    path.write_text(json.dumps({**values, "schema": 2}))
    with pytest.raises(ManifestError, match="schema 2"):
        upper(TEXTS, Upper(), Runtime(tmp_path))
    del values["seal"]
    seal = sha256_bytes(canonical_json({**values, "surprise": 1}))
    path.write_text(json.dumps({**values, "surprise": 1, "seal": seal}))
    with pytest.raises(ManifestError, match="surprise"):
        read_manifest(path)
    path.write_text(json.dumps({**values, "key": "f" * 64}))
    with pytest.raises(ManifestError, match="altered"):
        read_manifest(path)
    write_manifest(made.model_copy(update={"key": made.key[:16] + "f" * 48}), tmp_path)
    with pytest.raises(ManifestError, match="is of key"):
        upper(TEXTS, Upper(), Runtime(tmp_path))
    path.write_text(path.read_text()[:40])
    with pytest.raises(ManifestError, match="is not JSON"):
        upper(TEXTS, Upper(), Runtime(tmp_path))


def _race(root: Path) -> None:
    texts = [f"document number {i}" for i in range(20)]
    upper(texts, Upper(last="q"), Runtime(root))


def test_four_processes_race_on_one_stage(tmp_path):
    alone = upper([f"document number {i}" for i in range(20)], Upper(last="q"), Runtime(tmp_path / "alone"))
    context = multiprocessing.get_context("fork")
    for round_ in range(10):
        root = tmp_path / f"race{round_}"
        racers = [context.Process(target=_race, args=(root,)) for _ in range(4)]
        for racer in racers:
            racer.start()
        for racer in racers:
            racer.join()
        assert [racer.exitcode for racer in racers] == [0, 0, 0, 0]
        found = upper([f"document number {i}" for i in range(20)], Upper(last="q"), Runtime(root, make=False))
        assert found.digest == alone.digest
        assert verify(found, root) == []


def test_sigkill_at_random_points_then_the_same_command_gives_the_same_digest(tmp_path):
    texts = [f"text {i}" for i in range(40)]
    alone = upper(texts, Upper(), Runtime(tmp_path / "alone"))
    chance, context = random.Random(7), multiprocessing.get_context("fork")
    killed = 0
    for round_ in range(6):
        root = tmp_path / f"kill{round_}"
        child = context.Process(target=upper, args=(texts, Upper(), Runtime(root), slow_shout))
        child.start()
        while child.is_alive() and not root.exists():
            time.sleep(0.005)
        time.sleep(chance.uniform(0, 0.7))
        child.kill()
        child.join()
        killed += child.exitcode == -signal.SIGKILL
        for path in root.rglob("*.txt"):
            if not path.name.startswith("."):
                assert path.read_bytes() in {b"", *(t.upper().encode() for t in texts)}
        assert upper(texts, Upper(), Runtime(root)).digest == alone.digest
        assert not list(root.glob("upper/*/**/.*tmp~*"))
    assert killed >= 2
