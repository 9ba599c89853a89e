"""Views of energy against separate books: branches, children, shares of data, rollbacks, kills, no meter."""

from collections import Counter
from fractions import Fraction

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from governance.config import Section
from governance.energy.ancestry import behind, read_trainings, recorded
from governance.energy.attribution import Sum, add, settle
from governance.energy.checkpoint_cost import (
    BY_TOKENS,
    WHOLE,
    ParentModel,
    Training,
    cumulative_by_step,
    data_work,
    rate,
    surviving,
)
from governance.energy.ledger import host_ledger, read_ledger
from governance.energy.meters import EnergyConfig, meter
from governance.files import append_line, json_text
from governance.hooks import UNKNOWN_ENERGY, Hooks
from governance.manifest import Input, Manifest, write_manifest
from governance.stage import Made, Recipe, Runtime, run_stage
from tests.governance.test_energy_histories import History, added, attempt
from tests.governance.test_energy_ledger import write_line

work_done = st.fixed_dictionaries(
    {
        "data": st.integers(0, 3),
        "spent": st.integers(0, 900),
        "end": st.sampled_from(["surviving", "surviving", "OSError", "killed"]),
        "metered": st.sampled_from([True, True, True, False]),
    }
)
origin = st.fixed_dictionaries(
    {
        "data": st.frozensets(st.integers(0, 3)),
        "held": st.sampled_from([None, 100, 1000, 4000]),
        "a_step": st.integers(1, 400),
        "parents": st.lists(st.tuples(st.integers(0, 2), st.integers(0, 20)), max_size=2),
    }
)


def cumulative(survived, trainings, artifact, step, *more, **given):
    return cumulative_by_step(survived, trainings, artifact, [step], *more, **given)[0]


class Books(History):
    """A history with data work, and the inputs of its trainings."""

    def __init__(self, path):
        super().__init__(path)
        self.made: dict[str, list[int | None]] = {}

    def work(self, number: int, plan: dict) -> None:
        name, spent = f"clean/{plan['data']:016x}", plan["spent"] if plan["metered"] else None
        about = {"stage": "clean", "marks": {"artifact": name}, "every": 1.0}
        self.tick += 2
        write_line(self.path, "begin", f"d{number}", self.tick - 1, 0 if plan["metered"] else None, **about)
        good = plan["end"] == "surviving"
        if plan["end"] == "killed":
            write_line(self.path, "beat", f"d{number}", self.tick, spent, **about)
        else:
            output = {"outcome": "surviving" if good else "wasted", "cause": "" if good else plan["end"]}
            write_line(self.path, "end", f"d{number}", self.tick, spent, **about, **output)
        self.read.append(spent)
        if good:
            self.made.setdefault(name, []).append(spent)
        else:
            self.wasted.append(spent)

    def origins(self, plans: list[dict]) -> dict[str, Training]:
        """Children come after their parents, as in time."""
        found = {}
        names = sorted(self.trainings)
        for place, number in enumerate(names):
            training, plan = self.trainings[number], plans[number]
            steps = sorted({step for step, _ in training.live})
            starts = []
            for parent, which in plan["parents"]:
                live = sorted({step for step, _ in self.trainings[names[parent % place]].live}) if place else []
                if live:
                    starts.append(ParentModel(self.trainings[names[parent % place]].artifact, live[which % len(live)]))
            data = tuple(f"clean/{index:016x}" for index in sorted(plan["data"]))
            used = {step: plan["a_step"] * step for step in steps}
            found[training.artifact] = Training(data, plan["held"], used, tuple(dict.fromkeys(starts)))
        return found

    def reckon(self, origins, artifact, step, method):
        """Cumulative energy by walking down: the values in it, and whether all of it is known."""
        reached: dict[str, int] = {}

        def walk(name, until):
            reached[name] = max(reached.get(name, 0), until)
            for start in origins[name].starts:
                walk(start.artifact, start.step)

        walk(artifact, step)
        values, whole, shares = [], True, {}
        for name, until in reached.items():
            own = [e for t in self.trainings.values() if t.artifact == name for s, e in t.live if s <= until]
            values += own
            whole = whole and bool(own) and None not in own
            for data in origins[name].data:
                shares.setdefault(data, []).append((origins[name], until))
        for data, users in shares.items():
            parts = [
                1 if method == WHOLE else None if user.held is None else Fraction(user.used[until], user.held)
                for user, until in users
            ]
            made = self.made.get(data)
            if made is None or None in parts:
                whole = False
                continue
            share = min(Fraction(1), sum(min(Fraction(1), part) for part in parts))
            whole = whole and None not in made
            known = added(made)
            values.append(None if known is None else int(known * share))
        return added(values), whole


@settings(max_examples=60)
@given(
    st.lists(st.one_of(attempt, work_done), max_size=9), st.lists(origin, min_size=3, max_size=3),
    st.sampled_from((BY_TOKENS, WHOLE)),
)  # fmt: skip
def test_every_view_keeps_the_law_whatever_happened(tmp_path_factory, plans, origin_plans, method):
    path = host_ledger(tmp_path_factory.mktemp("views") / "energy.jsonl")
    books = Books(path)
    for number, plan in enumerate(plans):
        (books.work if "data" in plan else books.attempt)(number, plan)
    pieces = settle(read_ledger(path, alive=lambda line: False))
    everything = add(pieces)
    assert everything.measured == added(books.read)
    assert everything.wasted == added(books.wasted)
    origins, survived = books.origins(origin_plans), surviving(pieces)
    for training in books.trainings.values():
        steps = sorted({step for step, _ in training.live})
        at_once = cumulative_by_step(survived, origins, training.artifact, steps, method)
        for step, going_on in zip(steps, at_once, strict=True):
            view = cumulative(survived, origins, training.artifact, step, method)
            assert going_on.missing == view.missing
            for ours, theirs in zip((going_on, *going_on.parts), (view, *view.parts), strict=True):
                assert figures(ours.sum) == figures(theirs.sum)
            expected, whole = books.reckon(origins, training.artifact, step, method)
            assert view.sum.measured == expected
            assert view.sum.measured is not None or not any(part.sum.measured is not None for part in view.parts)
            assert (view.sum.surviving, view.sum.wasted, view.sum.unknown) == (expected, 0, 0)
            assert (view.sum.measured or 0) + (view.sum.wasted or 0) <= (everything.measured or 0)
            assert (view.sum.high is not None) == whole  # a sum that is not all known has no upper bound
            assert sum(part.sum.measured or 0 for part in view.parts) == (expected or 0)
            named = [part.artifact for part in view.parts]
            assert len(named) == len(set(named))
            if method == BY_TOKENS and not view.missing:
                most = cumulative(survived, origins, training.artifact, step, WHOLE).sum.measured
                assert (view.sum.measured or 0) <= (most or 0)


def figures(output):
    return (output.measured, output.surviving, output.wasted, output.unknown, output.low, output.high, output.methods)


def test_each_piece_is_added_up_once_however_many_checkpoints_there_are(tmp_path, monkeypatch):
    path = host_ledger(tmp_path / "energy.jsonl")
    marked(path, "encode/c", 0, 1000)
    for step in range(1, 21):
        marked(path, "train/k", 10 * step, 7, "train", resumed_from=step - 1, step=step)
    survived = surviving(settle(read_ledger(path)))
    counts = Counter()

    def counted(pieces):
        pieces = list(pieces)
        counts.update(piece.interval for piece in pieces)
        return add(pieces)

    monkeypatch.setattr("governance.energy.checkpoint_cost.add", counted)
    steps = range(1, 21)
    output = cumulative_by_step(
        survived, {"train/k": Training(("encode/c",), 20, {n: n for n in steps})}, "train/k", steps
    )
    assert [line.sum.measured for line in output] == [7 * step + 50 * step for step in steps]
    assert set(counts.values()) == {1}


def marked(path, name, tick, spent, stage="clean", **marks):
    about = {"stage": stage, "marks": {"artifact": name, **marks}}
    write_line(path, "begin", name + str(tick), tick, 0, **about)
    write_line(path, "end", name + str(tick), tick + 1, spent, outcome="surviving", cause="", **about)


def test_a_child_inherits_and_shares_of_one_corpus_add_up_to_the_whole(tmp_path):
    path = host_ledger(tmp_path / "energy.jsonl")
    marked(path, "encode/c", 0, 1000)
    marked(path, "train/p", 10, 500, "train", resumed_from=0, step=10)
    marked(path, "train/k", 20, 70, "train", resumed_from=0, step=4)
    survived = surviving(settle(read_ledger(path)))
    parent = Training(("encode/c",), 100, {10: 30})
    child = Training(("encode/c",), 100, {4: 25}, (ParentModel("train/p", 10),))
    trainings = {"train/p": parent, "train/k": child}
    assert cumulative(survived, trainings, "train/p", 10).sum.measured == 500 + 300
    assert cumulative(survived, trainings, "train/k", 4).sum.measured == 70 + 500 + 300 + 250
    assert cumulative(survived, trainings, "train/k", 4, WHOLE).sum.measured == 70 + 500 + 1000
    greedy = {**trainings, "train/k": Training(("encode/c",), 100, {4: 90}, child.starts)}
    assert cumulative(survived, greedy, "train/k", 4).sum.measured == 70 + 500 + 1000


def test_an_ancestor_without_a_record_leaves_no_upper_bound_and_is_named(tmp_path):
    path = host_ledger(tmp_path / "energy.jsonl")
    marked(path, "train/k", 20, 70, "train", resumed_from=0, step=4)
    survived = surviving(settle(read_ledger(path)))
    trainings = {"train/k": Training(("encode/c",), 100, {4: 25}, (ParentModel("train/gone", 9),))}
    view = cumulative(survived, trainings, "train/k", 4)
    assert (view.sum.measured, view.sum.high, view.missing) == (70, None, ("train/gone", "encode/c"))
    output = {"encode/c": Sum(400, 400, 0, 0, 300, 500, 0.0, 0.0, ("RAPL",))}
    view = cumulative(survived, trainings, "train/k", 4, recorded=output)
    assert (view.sum.measured, view.sum.low, view.missing) == (170, 70 + 75, ("train/gone",))
    assert cumulative(survived, {}, "train/none", 4).sum.measured is None


def test_a_rate_of_nothing_is_unknown():
    energy = Sum(3000, 3000, 0, 0, 2000, None, 0.0, 0.0, ())
    assert (rate(energy, 2).joules, rate(energy, 2).low, rate(energy, 2).high) == (1.5, 1.0, None)
    assert rate(energy, 0).joules is rate(energy, None).joules is rate(energy, -0.1).low is None
    assert rate(Sum(None, None, 0, 0, 0, None, 60.0, 0.0, ()), 5).low is None  # no meter: not even a bound


def artifact(root, stage, key, inputs=(), stats=None, config=None, energy=None, **run):
    made = Manifest(
        stage=stage, version=1, key=(key * 64)[:64], config=config or {}, outputs=(), stats=stats or {},
        inputs=tuple(inputs), run={"energy": energy, **run},
    )  # fmt: skip
    write_manifest(made, root)
    return made


def test_ancestors_are_read_from_manifests(tmp_path):
    raw = artifact(tmp_path, "ingest", "1", [Input(stage="file", digest="0", path="a.txt")])
    tokenizer = artifact(tmp_path, "tokenizer", "2", [raw.as_input()])
    energy = {"joules": 2.5, "low": 2.0, "high": None, "method": "RAPL"}
    encode = artifact(
        tmp_path, "encode", "3", [raw.as_input(), tokenizer.as_input()], {"train_tokens": 640}, {}, energy
    )
    parent = artifact(tmp_path, "train", "4", [encode.as_input()], {"steps": 8, "tokens": 80})
    middle = artifact(tmp_path, "checkpoint", "5", [encode.as_input()], {}, {"train_key": parent.key, "step": 4})
    child = artifact(tmp_path, "train", "6", [encode.as_input(), middle.as_input()], {"steps": 2, "tokens": 20})
    for step in (1, 2):
        line = {"event": "step", "step": step, "tokens": 10 * step, "loss": 1.0}
        append_line(tmp_path / child.folder / "metrics.jsonl", json_text(line).replace("\n", ""))
    trainings, known = read_trainings([child], tmp_path)
    data = (encode.folder, raw.folder, tokenizer.folder)
    assert trainings == {
        child.folder: Training(data, 640, {1: 10, 2: 20}, (ParentModel(parent.folder, 4),)),
        parent.folder: Training(data, 640, {8: 80}),
    }
    assert set(known) == {m.folder for m in (raw, tokenizer, encode, parent, middle, child)}
    assert recorded(known.values())[encode.folder].measured == 2500
    (tmp_path / parent.path).unlink()  # it was stopped: a checkpoint is all that remains of it
    trainings, _ = read_trainings([child], tmp_path)
    assert trainings[parent.folder] == Training(data, 640, {})
    (tmp_path / raw.path).unlink()
    (tmp_path / middle.path).unlink()
    trainings, _ = read_trainings([child], tmp_path)
    assert trainings[child.folder].gaps == (raw.folder,)
    assert trainings[child.folder].starts == (ParentModel(middle.folder, None),)


def test_shards_that_were_linked_from_an_earlier_artifact_leave_no_upper_bound(tmp_path):
    path = host_ledger(tmp_path / "energy.jsonl")
    marked(path, f"clean/{'1' * 16}", 0, 900)
    marked(path, f"clean/{'2' * 16}", 10, 10)  # one shard of it was made, the others linked
    marked(path, f"encode/{'3' * 16}", 20, 40)
    marked(path, f"train/{'4' * 16}", 30, 70, "train", resumed_from=0, step=4)
    survived = surviving(settle(read_ledger(path)))

    def views(**run):
        clean = artifact(tmp_path, "clean", "2", **run)
        encode = artifact(tmp_path, "encode", "3", [clean.as_input()], {"train_tokens": 100})
        train = artifact(tmp_path, "train", "4", [encode.as_input()], {"steps": 4, "tokens": 100})
        trainings, known = read_trainings([train], tmp_path)
        corpus = behind(encode, known.values(), tmp_path)
        return cumulative(survived, trainings, train.folder, 4), data_work(survived, corpus)

    for view, joules in zip(views(), (120, 50), strict=True):
        assert (view.sum.measured, view.missing) == (joules, ())
        assert view.sum.high is not None
    for view, joules in zip(views(linked_from=[f"clean/{'1' * 16}"]), (120, 50), strict=True):
        assert (view.sum.measured, view.sum.high) == (joules, None)
        assert view.missing == (f"the shards that were linked from clean/{'1' * 16}",)


def test_the_last_step_replaces_a_missing_one(tmp_path):
    training = Training((), 100, {10: 30, 20: 60})
    assert [training.share(step, BY_TOKENS) for step in (10, None, 15)] == [Fraction(3, 10), Fraction(3, 5), None]
    assert training.share(15, WHOLE) == 1
    with pytest.raises(AttributeError):
        training.held = 1


class Nothing(Section):
    """A stage without settings."""


def test_the_ledger_names_the_artifact_of_data_work_and_its_manifest_does_not(tmp_path):
    runtime = Runtime(tmp_path, hooks=Hooks(meter=meter(EnergyConfig(), tmp_path / "energy.jsonl")))
    made = run_stage(Recipe("clean", 1, Nothing()), [], runtime, lambda folder: Made([], {}))
    [survived] = surviving(settle(read_ledger(tmp_path / "energy.jsonl"))).items()
    assert survived[0] == made.folder
    assert sum(piece.millijoules or 0 for piece in survived[1]) == round(1000 * (made.run["energy"]["joules"] or 0))
    assert "artifact" not in made.run["energy"]
    plain = run_stage(Recipe("clean", 2, Nothing()), [], Runtime(tmp_path), lambda folder: Made([], {}))
    assert plain.run["energy"] == UNKNOWN_ENERGY
