"""Measures of a model's inside: patterns as of transformers, complete attribution, planted heads, exact pruning."""

import html.parser
import json
import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from benchmarks.measures.exported_weights import write_weights
from governance.errors import PipelineError
from pretrain.inference.loaded_model import LoadedModel
from pretrain.interpretability import interpretation
from pretrain.interpretability.attention_heads import head_figures, induction
from pretrain.interpretability.head_pruning import head_importance, prune_heads
from pretrain.interpretability.interpretation import interpret, refuse_texts
from pretrain.interpretability.interpretation_page import interpretation_lines, interpretation_page
from pretrain.interpretability.logit_lens import logit_lens
from pretrain.interpretability.recorded_pass import record
from pretrain.interpretability.token_attribution import (
    TOLERANCE,
    attribute,
    explained_by_embeddings,
    integrated_gradients,
)
from pretrain.model.decoder import Batch
from tests.pretrain.interpretability.planted_models import TOKENS, induction_model
from tests.pretrain.small_models import VARIANTS, config, model_of, rows

IDS = [5, 17, 33, 33, 8, 91, 4, 17, 33, 60, 2]
# Architectures of transformers: shared key heads, windows, soft caps, experts, tied embeddings, partial rotary.
GPT = {**VARIANTS["gpt2"], "num_key_value_heads": 4}
FAMILIES = {
    "llama": {}, "tied": {"tie_word_embeddings": True}, "mistral": VARIANTS["mistral"], "gpt2": GPT,
    "partial": {**GPT, "position_embedding": "rope", "partial_rotary_factor": 0.5},
    "gemma2": {**VARIANTS["gemma"], "qk_norm": False, "feed_forward": "geglu"}, "gemma3": VARIANTS["gemma3"],
    "mixtral": VARIANTS["mixtral"], "olmo2": VARIANTS["reordered"], "yarn": VARIANTS["yarn"], "mup": VARIANTS["mup"],
    "qwen3": {"qk_norm": True, "head_dim": 12},
}  # fmt: skip


def loaded(**changes) -> LoadedModel:
    return LoadedModel(model_of(config(**changes)).eval().requires_grad_(False), 40, 100)


def patterns_of(model: LoadedModel, ids) -> torch.Tensor:
    """[layers, heads, L, L]."""
    found = {}
    record(model.decoder, ids, lambda layer, head, pattern: found.update({(layer, head): pattern[0]}))
    heads = model.decoder.config.num_attention_heads
    flat = [found[divmod(place, heads)] for place in range(len(found))]
    return torch.stack(flat).view(-1, heads, len(ids), len(ids))


@pytest.mark.parametrize("name", FAMILIES)
def test_patterns_are_those_of_transformers(name, tmp_path):
    transformers = pytest.importorskip("transformers", reason="needs transformers, from the extra `dev`")
    model = loaded(**FAMILIES[name])
    folder = write_weights(model.decoder, tmp_path / "model")
    theirs = transformers.AutoModelForCausalLM.from_pretrained(folder, attn_implementation="eager").eval()
    with torch.no_grad():
        found = theirs(torch.tensor([IDS]), output_attentions=True, use_cache=False)
    wanted, ours = torch.cat(found.attentions), patterns_of(model, IDS)
    assert ours.shape == wanted.shape
    assert float((ours - wanted).abs().max()) <= 1e-5


@pytest.mark.parametrize("name", VARIANTS)
def test_every_variant_is_read_as_it_computes(name):
    """Streams, patterns and the last lens are the model's own, and the lens sees no token behind its position."""
    model, batch = loaded(**VARIANTS[name]), rows([[len(IDS)]])
    ids = batch.tokens[0].tolist()
    streams = record(model.decoder, ids, lambda layer, head, pattern: None)
    with torch.no_grad():
        wanted = model.decoder.logits(batch)[0, :, :100]
        hidden, _ = model.decoder.model(batch.tokens, batch.segments, batch.positions)
    assert len(streams.residual) == 3
    lens = logit_lens(model, streams.residual, ids)
    assert torch.equal(lens.likeliest[-1, :, 0], wanted.argmax(-1))
    chances = wanted.softmax(-1).topk(5).values
    assert float((lens.probabilities[-1] - chances).abs().max()) < 1e-5
    nats = torch.nn.functional.cross_entropy(wanted[:-1], batch.tokens[0, 1:])
    assert lens.nats[-1] == pytest.approx(float(nats), abs=1e-4)
    assert (lens.divergence[-1], lens.agreement[-1]) == (0.0, 1.0)
    patterns = patterns_of(model, ids)
    assert float((patterns.sum(-1) - 1).abs().max()) < 1e-5
    for layer, pattern in enumerate(patterns):
        window = model.decoder.config.window(layer) or len(ids)
        seen = torch.ones(len(ids), len(ids)).tril().triu(1 - window).bool()
        assert not pattern[:, ~seen].any()
    assert hidden.shape[1] == len(ids)


@pytest.mark.parametrize("name", VARIANTS)
def test_contributions_add_up(name):
    model = loaded(**VARIANTS[name])
    target = 42
    found = attribute(model, IDS, 0, target, rows=8)
    table = model.decoder.model.embed_tokens.weight
    explained = explained_by_embeddings(model, IDS, target)
    with torch.no_grad():
        whole, none = (float(explained(table[torch.tensor(ids)][None])) for ids in (IDS, [0] * len(IDS)))
        wanted = model.decoder.logits(text(IDS))[0, -1, :100].log_softmax(-1)[target]
    assert whole == pytest.approx(float(wanted), abs=1e-4)  # the explained value is the model's own
    assert (found.log_probability, found.baseline_log_probability) == (pytest.approx(whole), pytest.approx(none))
    if "moe" in VARIANTS[name]:
        assert found.integrated_gradients is None
    else:
        assert abs(sum(found.integrated_gradients) - (whole - none)) <= TOLERANCE
        assert found.completeness_error <= TOLERANCE


def text(ids) -> Batch:
    tokens = torch.tensor([ids])
    zeros = torch.zeros_like(tokens)
    return Batch(tokens, torch.full_like(tokens, -100), zeros.int(), torch.arange(len(ids))[None].int())


@pytest.mark.parametrize("name", ["llama", "gemma", "gpt2"])
def test_contributions_are_those_of_captum(name):
    """captum 0.9.0."""
    captum = pytest.importorskip("captum.attr", reason="needs captum, from the extra `dev`")
    model, target, steps = loaded(**VARIANTS[name]), 7, 24
    explained = explained_by_embeddings(model, IDS, target)
    table = model.decoder.model.embed_tokens.weight.detach()
    whole, none = table[torch.tensor(IDS)], table[torch.zeros(len(IDS), dtype=torch.int64)]
    theirs = captum.IntegratedGradients(explained, multiply_by_inputs=True).attribute(
        whole[None], none[None], n_steps=steps, method="gausslegendre"
    )
    ours = integrated_gradients(explained, whole, none, steps, rows=5)
    assert float((ours - theirs[0].sum(-1)).abs().max()) < 1e-5
    plain = captum.InputXGradient(explained).attribute(whole[None].clone().requires_grad_())[0].sum(-1)
    found = attribute(model, IDS, 0, target)
    assert torch.tensor(found.gradient_x_input) == pytest.approx(plain.detach(), abs=1e-5)


def test_an_induction_head_is_found_where_it_was_planted():
    found = induction(induction_model())
    assert found.repeated_tokens == TOKENS
    scores = torch.tensor(found.scores)
    assert float(scores[1, 0]) >= 0.9
    assert float(scores[0].max()) < 0.1
    assert float(scores[1, 1]) < 0.1  # it has no weights: equal attention


@pytest.mark.parametrize("name", ["llama", "mistral", "gpt2", "mixtral"])
def test_random_heads_are_no_induction_heads(name):
    model = LoadedModel(model_of(config(**VARIANTS[name]), factor=1.0).eval(), 64, 100)
    found = induction(model, special=frozenset({0, 1}), begin=1)
    window = VARIANTS[name].get("sliding_window", 31)
    assert found.repeated_tokens == min(window, 31)
    assert max(map(max, found.scores)) < 2.5 / found.repeated_tokens
    assert abs(found.nats_first - found.nats_second) < 0.3


def test_nothing_repeats_in_a_window_of_one_token():
    assert induction(loaded(sliding_window=1)) is None


@settings(max_examples=60)
@given(st.lists(st.lists(st.floats(-9, 9), min_size=6, max_size=6), min_size=6, max_size=6), st.integers(1, 8))
def test_entropy_is_between_that_of_one_key_and_of_all(logits, window):
    seen = torch.ones(6, 6).tril().triu(1 - window).bool()
    pattern = torch.tensor(logits).masked_fill(~seen, -math.inf).softmax(-1)
    found = head_figures(pattern[None], window)
    assert -1e-6 <= found["entropy"] <= math.log(min(window, 6)) + 1e-6
    assert window == 1 or -1e-6 <= found["entropy_share"] <= 1 + 1e-5
    equal = head_figures(seen.float()[None] / seen.sum(-1, keepdim=True), window)
    assert equal["entropy_share"] is None if window == 1 else equal["entropy_share"] == pytest.approx(1, abs=1e-5)
    assert (
        found["to_itself"] + found["to_previous"] * 5 / 6 <= 1 + 1e-5
    )  # two keys of a query, of which the first has one


class RowsOf:
    """Validation rows in memory."""

    sequence_length = 24

    def __init__(self, count):
        self.whole, self.count = rows([[9, 15]] * count), count

    def batch(self, numbers):
        columns = ("tokens", "targets", "segments", "positions")
        return Batch(*(getattr(self.whole, name)[numbers] for name in columns))


@pytest.mark.parametrize("name", ["llama", "gemma", "gpt2", "mixtral", "sinusoidal", "mistral"])
def test_importance_is_the_slope_of_the_loss(name):
    model, batch = loaded(**VARIANTS[name]).decoder, RowsOf(1).batch([0])
    found = head_importance(model, iter([batch]))
    step = 1e-2
    for layer, head in ((0, 1), (1, 3)):
        part = model.model.layers[layer].self_attn.o_proj.weight[:, head * model.config.head_dim :][
            :, : model.config.head_dim
        ]
        losses, kept = [], part.clone()
        for factor in (1 + step, 1 - step):
            part.copy_(kept * factor)
            with torch.no_grad():
                _, nats = model(batch.tokens, batch.targets, batch.segments, batch.positions)
            losses.append(float(nats.sum()))
        part.copy_(kept)
        slope = (losses[0] - losses[1]) / (2 * step) / float((batch.targets >= 0).sum())
        assert float(found[layer, head]) == pytest.approx(abs(slope), rel=0.05, abs=2e-4)


def test_heads_without_effect_go_first_and_cost_nothing():
    model, given_rows, passed = loaded(num_attention_heads=4), RowsOf(6), []
    dead = [(0, 2), (1, 0)]
    for layer, head in dead:
        model.decoder.model.layers[layer].self_attn.o_proj.weight[:, 8 * head : 8 * head + 8] = 0.0
    found = prune_heads(model, given_rows, 64, 2, passed.append)
    assert sorted(found.order[:2]) == dead
    assert [found.importance[layer][head] for layer, head in dead] == [0.0, 0.0]
    by_count = {row["removed"]: row for row in found.rows}
    assert list(by_count) == [0, 1, 2, 3, 4, 5, 6, 7, 8]
    assert by_count[0]["cost"] == by_count[1]["cost"] == by_count[2]["cost"] == 0.0
    assert by_count[2]["cost_stderr"] == 0.0 < by_count[8]["cost_stderr"]
    assert (found.rows_of_importance, found.rows_of_cost) == (3, 3)
    assert sum(passed) == 3 + 9 * 3
    for layer in model.decoder.model.layers:  # without all heads: as without the projection that they write through
        layer.self_attn.o_proj.weight.zero_()
    batch = given_rows.batch([1, 3, 5])
    with torch.no_grad():
        _, nats = model.decoder(batch.tokens, batch.targets, batch.segments, batch.positions)
    wanted = float(nats.double().sum()) / int((batch.targets >= 0).sum())
    assert by_count[8]["loss"] == pytest.approx(wanted, abs=1e-6)


def test_one_row_cannot_choose_and_measure():
    with pytest.raises(PipelineError, match=r"needs 2 validation rows.*Raise --rows"):
        prune_heads(loaded(), RowsOf(1), 64, 2, lambda count: None)


def test_texts_that_cannot_be_read_are_refused():
    with pytest.raises(PipelineError, match=r"text 2: has no token"):
        refuse_texts([[1], []], 8)
    with pytest.raises(
        PipelineError, match=r"text 1: has 9 tokens; the model's context is 8 .*Shorten it by 1 or more"
    ):
        refuse_texts([[1] * 9], 8)
    refuse_texts([[1] * 8], 8)
    model = loaded()
    model.decoder.model.layers[1].mlp.down_proj.weight[0, 0] = math.inf
    with pytest.raises(PipelineError, match=r"the stream after 2 blocks is not finite.*give an earlier checkpoint"):
        interpret(model, IDS, str, 0, 8, lambda n: None)


HOSTILE = [
    "<script>alert(1)</script>",
    "\u202e",
    "\x00",
    "&amp;",
    '"><img src=x onerror=y>',
    "]]>",
    "\ud800",
    "日本",
    "\n",
]


class Tags(html.parser.HTMLParser):
    """Names of tags, addresses, and elements that stay open."""

    def __init__(self):
        super().__init__()
        self.found, self.open, self.addresses = set(), [], []

    def handle_starttag(self, tag, attrs):
        self.found.add(tag)
        self.addresses += [value for name, value in attrs if name in ("src", "href") or name.startswith("on")]
        if tag not in ("meta", "br", "hr", "col"):
            self.open.append(tag)

    def handle_endtag(self, tag):
        assert self.open.pop() == tag


@pytest.mark.parametrize("name", ["llama", "mixtral", "gemma"])
def test_the_page_needs_nothing_and_escapes_all(name, monkeypatch):
    model = loaded(**VARIANTS[name])

    def name_of(token):
        return HOSTILE[token % len(HOSTILE)]

    texts = [{"text": HOSTILE[0], **interpret(model, ids, name_of, 0, 8, lambda n: None)} for ids in (IDS, IDS[:1])]
    monkeypatch.setattr(interpretation, "MAX_PATTERN_NUMBERS", 100)
    texts.append({"text": "", **interpret(model, IDS * 3, name_of, 0, 8, lambda n: None)})
    assert [one["patterns"] is None for one in texts] == [False, False, True]
    assert any("give a shorter text" in note for note in texts[2]["not_measured"])
    assert any("routers of experts" in note for note in texts[0]["not_measured"]) == (name == "mixtral")
    pruned = prune_heads(model, RowsOf(4), 4, 2, lambda count: None)
    values = {
        "checkpoint": "c" * 64, "step": 3, "layers": 2, "attention_heads": 4, "texts": texts,
        "induction": interpretation.induction_figures(model, frozenset(), None), "head_pruning": vars(pruned),
        "energy": {"joules": 1.0},
    }  # fmt: skip
    json.dumps(values, allow_nan=False)
    page = interpretation_page(values)
    tags = Tags()
    tags.feed(page)
    assert tags.open == []
    assert not tags.found & {"script", "img", "link", "iframe"}
    assert set(tags.addresses) == {"#main"}
    assert "<bdi>↵</bdi>" in page
    assert '<span class="named">after blocks: </span>1</th>' in page  # shown where a row is a block
    assert '<code class="token"><bdi>\n' not in page
    assert not any(mark in page for mark in ("\u202e", "\x00", "\ud800", "url("))
    lines = interpretation_lines({**values, "induction": None})
    assert not any(mark in line for line in lines for mark in ("\u202e", "\x00", "\ud800"))
    short = interpretation_page({**values, "induction": None, "texts": []})
    assert "two tokens cannot repeat" in short
