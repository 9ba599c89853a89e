"""Assay's decoder for `transformers`: every variant of its section `[model]`, in one file that needs nothing else.

It computes what the trainer computed, one document per row; weights have the trainer's names. Padding (on either side)
is given by `attention_mask`. Written for reading: attention is `scaled_dot_product_attention` with a table, or the
formula.
"""

import math

import torch
import torch.nn.functional as F
from torch import nn
from transformers import GenerationMixin, PreTrainedModel
from transformers.cache_utils import DynamicCache
from transformers.modeling_outputs import CausalLMOutputWithPast

from .configuration_assay import AssayConfig


class RMSNorm(nn.Module):
    """x / sqrt(mean(x^2) + eps) * weight over the last axis; `weight` may be none."""

    def __init__(self, size, spec):
        super().__init__()
        self.weight = nn.Parameter(torch.ones(size)) if spec["norm_weights"] else None
        self.eps = spec["rms_norm_eps"]

    def forward(self, x):
        """[..., size] -> [..., size]."""
        return F.rms_norm(x, (x.shape[-1],), self.weight, self.eps)


def make_norm(spec):
    """A norm over the stream."""
    size, learned = spec["hidden_size"], spec["norm_weights"]
    if spec["norm"] == "rmsnorm":
        return RMSNorm(size, spec)
    return nn.LayerNorm(size, spec["rms_norm_eps"], elementwise_affine=learned, bias=spec["bias"])


class Attention(nn.Module):
    """Grouped-query attention, with or without norms of heads, rotary positions, a window and a soft cap."""

    def __init__(self, spec, layer):
        super().__init__()
        width, self.head_dim = spec["hidden_size"], spec["head_dim"]
        self.layer, self.softcap = layer, spec["attn_logit_softcapping"]
        wide, narrow = (spec[f"num_{kind}_heads"] * self.head_dim for kind in ("attention", "key_value"))
        every = spec["full_attention_every"]
        self.window = None if every and (layer + 1) % every == 0 else spec["sliding_window"]
        mup = spec["initialisation"] == "mup"
        self.scale = 8.0 / self.head_dim if mup else (spec["query_pre_attn_scalar"] or self.head_dim) ** -0.5
        self.q_proj = nn.Linear(width, wide, bias=spec["bias"])
        self.k_proj = nn.Linear(width, narrow, bias=spec["bias"])
        self.v_proj = nn.Linear(width, narrow, bias=spec["bias"])
        self.o_proj = nn.Linear(wide, width, bias=spec["bias"])
        self.normal, self.whole = spec["qk_norm"], spec["qk_norm_whole"]
        if self.normal:
            sizes = (wide, narrow) if self.whole else (self.head_dim, self.head_dim)
            self.q_norm, self.k_norm = (RMSNorm(size, spec) for size in sizes)

    def forward(self, x, angles, visible, cache):
        """[B, L, hidden] -> [B, L, hidden]; `visible` [B, 1, L, K] says which keys each query may see.

        The window is left out of `visible`.
        """
        rows, length, _ = x.shape
        shape = (rows, length, -1, self.head_dim)
        q, k, v = self.q_proj(x), self.k_proj(x), self.v_proj(x)
        if self.normal and self.whole:
            q, k = self.q_norm(q), self.k_norm(k)
        q, k, v = q.view(shape), k.view(shape), v.view(shape)
        if self.normal and not self.whole:
            q, k = self.q_norm(q), self.k_norm(k)
        q, k, v = q.transpose(1, 2), k.transpose(1, 2), v.transpose(1, 2)
        if angles is not None:
            q, k = rotate(q, angles), rotate(k, angles)
        if cache is not None:
            k, v = cache.update(k, v, self.layer)
        groups = q.shape[1] // k.shape[1]
        if groups > 1:
            k, v = k.repeat_interleave(groups, dim=1), v.repeat_interleave(groups, dim=1)
        if self.window is not None:
            behind = k.shape[2] - length
            visible = visible & torch.ones_like(visible).triu(behind + 1 - self.window)
        if self.softcap is None:
            seen = F.scaled_dot_product_attention(q, k, v, attn_mask=visible, scale=self.scale)
        else:
            logits = (q @ k.transpose(-1, -2)).float() * self.scale
            logits = self.softcap * torch.tanh(logits / self.softcap)
            seen = logits.masked_fill(~visible, float("-inf")).softmax(-1).to(v.dtype) @ v
        return self.o_proj(seen.transpose(1, 2).reshape(rows, length, -1))


def rotate(x, angles):
    """Turn each pair of channels (i, i + R/2) of x [B, H, L, D] by its angle; those from R on stay as they are."""
    turned = 2 * angles.shape[-1]
    if turned < x.shape[-1]:
        return torch.cat((rotate(x[..., :turned], angles), x[..., turned:]), dim=-1)
    low, high = x.chunk(2, dim=-1)
    cosines, sines = angles
    return torch.cat((low * cosines - high * sines, high * cosines + low * sines), dim=-1)


def rotary_angles(positions, spec, dtype, local):
    """Cosines and sines [2, B, 1, L, R / 2] for positions [B, L]; `local`: of layers with their own base."""
    turned = int(spec["head_dim"] * spec["partial_rotary_factor"])
    channels = torch.arange(0, turned, 2, dtype=torch.float32, device=positions.device)
    frequencies = spec["rope_local_base_freq" if local else "rope_theta"] ** -(channels / turned)
    scaling, warmth = None if local else spec["rope_scaling"], 1.0
    if scaling is not None:
        frequencies = stretched(frequencies, turned, spec["rope_theta"], scaling)
        if scaling["rope_type"] == "yarn":
            warmth = 0.1 * math.log(scaling["factor"]) + 1.0
    angles = positions[:, None, :, None].float() * frequencies
    return (torch.stack((angles.cos(), angles.sin())) * warmth).to(dtype)


def stretched(plain, head_dim, theta, scaling):
    """Frequencies for a longer context: linear, as Llama 3, or YaRN (arXiv:2309.00071)."""
    kind, factor = scaling["rope_type"], scaling["factor"]
    if kind == "linear":
        return plain / factor
    context = scaling["original_max_position_embeddings"]
    if kind == "llama3":
        low, high = scaling["low_freq_factor"], scaling["high_freq_factor"]
        kept = ((plain * context / (2 * math.pi) - low) / (high - low)).clamp(0, 1)
    else:
        turns = scaling["beta_fast"], scaling["beta_slow"]
        fast, slow = (head_dim * math.log(context / (t * 2 * math.pi)) / (2 * math.log(theta)) for t in turns)
        first, last = max(math.floor(fast), 0), min(math.ceil(slow), head_dim - 1)
        numbers = torch.arange(len(plain), dtype=torch.float32, device=plain.device)
        kept = 1.0 - ((numbers - first) / max(last - first, 1e-3)).clamp(0, 1)
    return plain * kept + plain / factor * (1.0 - kept)


def sinusoids(positions, size):
    """Fixed vectors [B, L, size]: sines in even channels, cosines in odd."""
    channels = torch.arange(0, size, 2, dtype=torch.float32, device=positions.device)
    angles = positions[..., None].float() * 10_000.0 ** -(channels / size)
    return torch.stack((angles.sin(), angles.cos()), dim=-1).flatten(-2)


class FeedForward(nn.Module):
    """down(f(gate(x)) * up(x)), f SiLU or GELU's tanh form, or down(f(up(x))) with GELU, ReLU or squared ReLU for f."""

    def __init__(self, spec):
        super().__init__()
        width, inner, self.kind = spec["hidden_size"], spec["intermediate_size"], spec["feed_forward"]
        if self.kind in ("swiglu", "geglu"):
            self.gate_proj = nn.Linear(width, inner, bias=spec["bias"])
        self.up_proj = nn.Linear(width, inner, bias=spec["bias"])
        self.down_proj = nn.Linear(inner, width, bias=spec["bias"])

    def forward(self, x):
        """[..., hidden] -> [..., hidden]."""
        x, raw = self.up_proj(x), x
        if self.kind == "swiglu":
            return self.down_proj(F.silu(self.gate_proj(raw)) * x)
        if self.kind == "geglu":
            return self.down_proj(F.gelu(self.gate_proj(raw), approximate="tanh") * x)
        if self.kind == "gelu":
            return self.down_proj(F.gelu(x))
        return self.down_proj(F.relu(x) if self.kind == "relu" else F.relu(x).square())


class Experts(nn.Module):
    """The sum of the outputs of the experts that a token chose, weighed by their probability; none is dropped."""

    def __init__(self, spec):
        super().__init__()
        moe = spec["moe"]
        self.gate = nn.Linear(spec["hidden_size"], moe["num_local_experts"], bias=False)
        self.experts = nn.ModuleList(FeedForward(spec) for _ in range(moe["num_local_experts"]))
        if moe.get("router_bias_update_rate"):  # added to the probabilities to choose, not to weigh
            self.gate.e_score_correction_bias = nn.Parameter(torch.zeros(moe["num_local_experts"]), requires_grad=False)
        self.used, self.normalised = moe["num_experts_per_tok"], moe["norm_topk_prob"]

    def forward(self, x):
        """[B, L, hidden] -> [B, L, hidden]."""
        tokens = x.flatten(0, 1)
        chances = F.linear(tokens.float(), self.gate.weight.float()).softmax(-1)
        bias = getattr(self.gate, "e_score_correction_bias", 0.0)
        chosen = (chances + bias).topk(self.used, dim=-1).indices
        chances = chances.gather(-1, chosen)
        if self.normalised:
            chances = chances / chances.sum(-1, keepdim=True)
        out = torch.zeros_like(tokens)
        for number, expert in enumerate(self.experts):
            row, place = (chosen == number).nonzero(as_tuple=True)
            if len(row):
                out.index_add_(0, row, expert(tokens[row]) * chances[row, place, None].to(tokens.dtype))
        return out.view(x.shape)


class Block(nn.Module):
    """Attention, then feed-forward, each added to the stream, with norms as the model says."""

    def __init__(self, spec, layer):
        super().__init__()
        self.order = spec["norm_position"]
        if self.order != "reordered":
            self.input_layernorm = make_norm(spec)
        self.self_attn = Attention(spec, layer)
        self.post_attention_layernorm = make_norm(spec)
        if self.order == "sandwich":
            self.pre_feedforward_layernorm = make_norm(spec)
        if self.order in ("sandwich", "reordered"):
            self.post_feedforward_layernorm = make_norm(spec)
        self.mlp = FeedForward(spec) if spec["moe"] is None else Experts(spec)

    def forward(self, x, *seen):
        """[B, L, hidden] -> [B, L, hidden]."""
        if self.order == "post":
            x = self.input_layernorm(x + self.self_attn(x, *seen))
            return self.post_attention_layernorm(x + self.mlp(x))
        if self.order == "pre":
            x = x + self.self_attn(self.input_layernorm(x), *seen)
            return x + self.mlp(self.post_attention_layernorm(x))
        if self.order == "reordered":
            x = x + self.post_attention_layernorm(self.self_attn(x, *seen))
            return x + self.post_feedforward_layernorm(self.mlp(x))
        x = x + self.post_attention_layernorm(self.self_attn(self.input_layernorm(x), *seen))
        return x + self.post_feedforward_layernorm(self.mlp(self.pre_feedforward_layernorm(x)))


class Stack(nn.Module):
    """Embedding, blocks, final norm."""

    def __init__(self, spec, rows):
        super().__init__()
        self.spec = spec
        self.embed_tokens = nn.Embedding(rows, spec["hidden_size"])
        if spec["position_embedding"] == "learned":
            self.embed_positions = nn.Embedding(spec["max_position_embeddings"], spec["hidden_size"])
        if spec["embedding_norm"]:
            self.embedding_norm = make_norm(spec)
        self.layers = nn.ModuleList(Block(spec, layer) for layer in range(spec["num_hidden_layers"]))
        if spec["norm_position"] != "post":
            self.norm = make_norm(spec)

    def forward(self, x, positions, visible, cache):
        """Embedded tokens [B, L, hidden] -> hidden states [B, L, hidden]."""
        spec = self.spec
        if spec["embedding_multiplier"] != 1.0:
            x = x * spec["embedding_multiplier"]
        if spec["position_embedding"] == "learned":
            x = x + self.embed_positions(positions)
        if spec["position_embedding"] == "sinusoidal":
            scale = math.sqrt(spec["hidden_size"] / width_ratio(spec))
            x = x * scale + sinusoids(positions, x.shape[-1]).to(x.dtype)
        if spec["embedding_norm"]:
            x = self.embedding_norm(x)
        angles = {False: None}
        if spec["position_embedding"] == "rope":
            kinds = (False, True) if spec["rope_local_base_freq"] else (False,)
            angles = {local: rotary_angles(positions, spec, x.dtype, local) for local in kinds}
        for layer in self.layers:
            local = layer.self_attn.window is not None and True in angles
            x = layer(x, angles[local], visible, cache)
        return x if spec["norm_position"] == "post" else self.norm(x)


def width_ratio(spec):
    """Under muP, how many times wider than its base the model is; else 1."""
    return spec["hidden_size"] / spec["mup_base_width"] if spec["mup_base_width"] else 1.0


class AssayForCausalLM(PreTrainedModel, GenerationMixin):
    """The language model."""

    config_class = AssayConfig
    base_model_prefix = "model"
    _no_split_modules = ("Block",)
    _supports_sdpa = True
    _keep_in_fp32_modules_strict = ("e_score_correction_bias",)

    def __init__(self, config):
        super().__init__(config)
        spec = config.assay_model
        self.model = Stack(spec, config.vocab_size)
        if not spec["tie_word_embeddings"]:
            self.lm_head = nn.Linear(spec["hidden_size"], config.vocab_size, bias=False)
        self.post_init()

    def _init_weights(self, module):
        """Nothing: weights are loaded."""

    def get_input_embeddings(self):
        """The table of tokens."""
        return self.model.embed_tokens

    def set_input_embeddings(self, value):
        """Another table of tokens."""
        self.model.embed_tokens = value

    def get_output_embeddings(self):
        """The output projection, or None where it is the table of tokens."""
        return getattr(self, "lm_head", None)

    def forward(  # noqa: PLR0913 - the names that transformers gives
        self, input_ids=None, attention_mask=None, position_ids=None, past_key_values=None, inputs_embeds=None,
        labels=None, use_cache=None, logits_to_keep=0, cache=None, **unused,
    ):  # fmt: skip
        """Logits [B, L, vocabulary] of the next token, and the cache if it is wanted (`cache` is its newer name)."""
        x = self.model.embed_tokens(input_ids) if inputs_embeds is None else inputs_embeds
        cache = past_key_values if cache is None else cache
        if use_cache and cache is None:
            cache = DynamicCache()
        past, (rows, length) = 0 if cache is None else cache.get_seq_length(), x.shape[:2]
        visible = torch.ones(length, past + length, dtype=torch.bool, device=x.device).tril(past)
        itself = torch.eye(past + length, dtype=torch.bool, device=x.device)[past:]
        visible = visible.expand(rows, 1, length, past + length)
        if attention_mask is not None:
            told = attention_mask[:, -(past + length) :].bool()
            visible = visible & told[:, None, None, :] | itself  # padding sees itself: a row of nothing has no softmax
        if position_ids is None:
            position_ids = torch.arange(past, past + length, device=x.device).expand(rows, length)
            if attention_mask is not None:
                position_ids = (attention_mask.long().cumsum(-1) - 1).clamp(min=0)[:, -length:]
        hidden = self.model(x, position_ids, visible, cache)
        kept = slice(-logits_to_keep, None) if isinstance(logits_to_keep, int) else logits_to_keep
        logits = self._logits(hidden[:, kept, :])
        loss = None
        if labels is not None:
            loss = F.cross_entropy(logits[:, :-1].flatten(0, 1).float(), labels[:, 1:].flatten(), ignore_index=-100)
        return CausalLMOutputWithPast(loss=loss, logits=logits, past_key_values=cache)

    def _logits(self, hidden):
        spec = self.config.assay_model
        table = self.model.embed_tokens if spec["tie_word_embeddings"] else self.lm_head
        logits = F.linear(hidden, table.weight) / width_ratio(spec)
        cap = spec["final_logit_softcapping"]
        return logits if cap is None else cap * torch.tanh(logits / cap)
