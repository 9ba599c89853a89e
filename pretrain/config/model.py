"""The `[model]` section and derived sizes.

It imports no torch.

The defaults are Llama's: rotary positions, RMSNorm before each part, SwiGLU, no bias. Every field changes what is
learned, so all of them enter the key of a training run. Fields that Hugging Face knows have its names.
"""

from __future__ import annotations

from operator import not_
from typing import Any, Literal

from pydantic import Field, model_validator

from governance.config import Section


class RopeScaling(Section):
    """Scaled rotary embeddings, named as in Hugging Face's configurations."""

    rope_type: Literal["linear", "llama3", "yarn"]
    """linear: positions divided by `factor` (arXiv:2306.15595); llama3: long waves only (arXiv:2407.21783, section
    3.4.2, and Llama 3.1's code); yarn: by the number of turns, and warmer attention (arXiv:2309.00071)."""
    factor: float = Field(ge=1)
    """By how much the context grows."""
    original_max_position_embeddings: int | None = Field(default=None, gt=0)
    """Tokens of the context before stretching; llama3 and yarn need it."""
    low_freq_factor: float = Field(default=1.0, gt=0)
    """llama3: waves that turn fewer times than this over the original context are stretched in full."""
    high_freq_factor: float = Field(default=4.0, gt=0)
    """llama3: waves that turn more often than this over the original context are left alone."""
    beta_fast: float = Field(default=32.0, gt=0)
    """yarn: waves that turn more often than this over the original context are left alone."""
    beta_slow: float = Field(default=1.0, gt=0)
    """yarn: waves that turn fewer times than this over the original context are stretched in full."""

    @model_validator(mode="after")
    def _fits(self) -> RopeScaling:
        if self.rope_type != "linear" and self.original_max_position_embeddings is None:
            raise ValueError(
                f"rope_type = {self.rope_type!r} needs original_max_position_embeddings: the context, in tokens, "
                f"before it was stretched"
            )
        for small, large in (("low_freq_factor", "high_freq_factor"), ("beta_slow", "beta_fast")):
            if getattr(self, small) >= getattr(self, large):
                raise ValueError(
                    f"{small} = {getattr(self, small)} is not below {large} = {getattr(self, large)}; exchange them"
                )
        return self


class MoeConfig(Section):
    """Mixture of experts (arXiv:1701.06538, arXiv:2401.04088).

    The token chooses, and none is ever dropped: an expert takes as many tokens as chose it (arXiv:2211.15841). Each
    expert is a feed-forward layer as the rest of `[model]` says, `intermediate_size` channels wide.
    """

    num_local_experts: int = Field(gt=1)
    """Experts of each layer."""
    num_experts_per_tok: int = Field(gt=0)
    """Experts that a token uses: those of the largest router probability."""
    norm_topk_prob: bool = True
    """Divide the chosen probabilities by their sum (Mixtral); False: weigh by the plain softmax (Switch), which one
    expert per token needs: of a single probability divided by itself the router would learn nothing."""
    router_aux_loss_coef: float = Field(default=0.01, ge=0)
    """Weight of the load-balancing loss, per layer: experts x sum of (share of choices x mean probability), which is 1
    when all experts are used alike (Switch, arXiv:2101.03961, eq. 4)."""
    router_z_loss_coef: float = Field(default=0.001, ge=0)
    """Weight of the mean squared log-sum-exp of the router's logits, per layer (ST-MoE, arXiv:2202.08906, eq. 5)."""
    router_bias_update_rate: float = Field(default=0.0, ge=0, lt=1, exclude_if=not_)
    """Step by which each expert's selection bias moves after an update, towards equal loads (arXiv:2408.15664, which
    takes 0.001 and no auxiliary loss: set router_aux_loss_coef = 0); 0: no bias."""

    @model_validator(mode="after")
    def _choices(self) -> MoeConfig:
        if self.num_experts_per_tok > self.num_local_experts:
            raise ValueError(
                f"num_experts_per_tok = {self.num_experts_per_tok} is above num_local_experts = "
                f"{self.num_local_experts}; a token cannot use more experts than there are"
            )
        if self.num_experts_per_tok == 1 and self.norm_topk_prob:
            raise ValueError(
                "num_experts_per_tok = 1 with norm_topk_prob = true: the one chosen probability divided by itself is 1 "
                "whatever the router says, so the loss never trains it; set norm_topk_prob = false (Switch)"
            )
        return self


class ModelConfig(Section):
    """A Transformer (arXiv:1706.03762); fields as in a Hugging Face Llama configuration.

    The vocabulary's size is not a setting: it is that of the token shards, padded to a multiple of 128
    (`padded_vocabulary`).
    """

    hidden_size: int = Field(gt=0)
    """Width of the residual stream, in channels."""
    intermediate_size: int = Field(gt=0)
    """Inner width of the feed-forward layer (of each expert), in channels."""
    num_hidden_layers: int = Field(gt=0)
    """Transformer blocks."""
    num_attention_heads: int = Field(gt=0)
    """Query heads."""
    num_key_value_heads: int = Field(gt=0)
    """Key and value heads: as many as query heads, fewer (grouped-query attention, arXiv:2305.13245), or one
    (multi-query attention, arXiv:1911.02150)."""
    head_dim: int = Field(default=0, ge=0)
    """Channels of one head; 0: hidden_size / num_attention_heads (Qwen 3 and Gemma have others)."""
    max_position_embeddings: int = Field(gt=0)
    """Upper bound of the sequence length, in tokens; rows of the table of learned positions."""

    position_embedding: Literal["rope", "learned", "sinusoidal", "none"] = "rope"
    """Encoding of a token's position in its document. rope: queries and keys are rotated (arXiv:2104.09864). learned,
    sinusoidal: a vector is added to the embedding (GPT-2; arXiv:1706.03762, section 3.5). none: the causal mask alone
    (arXiv:2203.16634)."""
    rope_theta: float = Field(default=10_000.0, gt=1)
    """Base wavelength of the rotary position embedding (arXiv:2104.09864)."""
    rope_scaling: RopeScaling | None = None
    """Stretches the rotary embedding; none: as it is."""
    rope_local_base_freq: float | None = Field(default=None, gt=1)
    """The base wavelength of layers with a window, which are then not stretched (Gemma 3, arXiv:2503.19786); none: that
    of all layers."""
    partial_rotary_factor: float = Field(default=1.0, gt=0, le=1)
    """The share of a head's channels that is turned, from the first on (GPT-NeoX, arXiv:2204.06745)."""

    norm: Literal["rmsnorm", "layernorm"] = "rmsnorm"
    """Divide by the root mean square (arXiv:1910.07467), or subtract the mean and divide by the deviation
    (arXiv:1607.06450)."""
    norm_position: Literal["pre", "post", "sandwich", "reordered"] = "pre"
    """Place of a block's norms. pre: on the input of each part (GPT-2; arXiv:2002.04745). post: on the residual stream
    after each sum (arXiv:1706.03762), without a final norm. sandwich: on input and output of each part
    (arXiv:2105.13290). reordered: on the output alone (OLMo 2, arXiv:2501.00656)."""
    norm_weights: bool = True
    """Give norms a learned scale; False: none, and no bias either (OLMo, arXiv:2402.00838)."""
    rms_norm_eps: float = Field(default=1e-5, gt=0)
    """Added to the mean square (or variance) in every norm."""
    embedding_norm: bool = False
    """A norm right after the embedding (BLOOM, arXiv:2211.05100)."""
    qk_norm: bool = False
    """RMSNorm of each query and key head, before positions (arXiv:2302.05442; as Qwen 3 has it)."""
    qk_norm_whole: bool = False
    """With qk_norm: over the channels of all heads together (OLMo 2, arXiv:2501.00656)."""
    embedding_multiplier: float = Field(default=1.0, gt=0)
    """Factor of the token embeddings: sqrt(hidden_size) in Gemma (arXiv:2403.08295)."""
    query_pre_attn_scalar: float | None = Field(default=None, gt=0)
    """Products of queries and keys are divided by its square root (Gemma 2); none: see `attention_scale`."""

    feed_forward: Literal["swiglu", "geglu", "gelu", "relu", "relu2"] = "swiglu"
    """The layer between attentions: gated by SiLU or by GELU's tanh form (arXiv:2002.05202), or two maps with GELU
    (arXiv:1606.08415, by erf), ReLU or squared ReLU (Primer, arXiv:2109.08668) in between."""
    bias: bool = False
    """Biases in all linear maps of the blocks and in LayerNorm, as in GPT-2."""

    sliding_window: int | None = Field(default=None, gt=0)
    """Tokens that a token sees, itself included (Mistral, arXiv:2310.06825); none: its document so far."""
    full_attention_every: int = Field(default=0, ge=0)
    """With a window: every so many layers, one sees its whole document (Gemma 3, arXiv:2503.19786); 0: none does."""
    attn_logit_softcapping: float | None = Field(default=None, gt=0)
    """c: attention's logits become c tanh(logits / c) (Gemma 2, arXiv:2408.00118)."""
    final_logit_softcapping: float | None = Field(default=None, gt=0)
    """c: the model's logits become c tanh(logits / c) (Gemma 2, arXiv:2408.00118)."""
    z_loss: float = Field(default=0.0, ge=0)
    """Weight of the squared log-sum-exp of each token's logits in what is minimised (PaLM, arXiv:2204.02311)."""

    tie_word_embeddings: bool = False
    """Use the input embedding as the output projection too (arXiv:1608.05859)."""
    initialisation: Literal["depth_scaled", "normal", "mup", "xavier"] = "depth_scaled"
    """Deviation of matrices. normal: initializer_range. xavier: of a block's matrices sqrt(2 / (rows + columns))
    (Glorot and Bengio 2010). depth_scaled: and the two that write into the stream divided by
    sqrt(2 layers) (GPT-2, section 2.3). mup: that, and by width, with learning rates and the output's scale too, so
    that a rate that is best at mup_base_width stays best at any width (arXiv:2203.03466, table 8)."""
    initializer_range: float = Field(default=0.02, gt=0)
    """Deviation of a matrix at the start; under mup that of width mup_base_width."""
    embedding_range: float | None = Field(default=None, gt=0)
    """Deviation of the embeddings at the start; none: initializer_range."""
    zero_init_outputs: bool = False
    """Start o_proj, down_proj and an untied lm_head at zero, so that a new model's blocks add nothing and its loss is
    the logarithm of the vocabulary (arXiv:2203.03466, appendix D.2)."""
    mup_base_width: int | None = Field(default=None, gt=0)
    """Under mup: the hidden_size at which initializer_range and the learning rate were tuned."""
    moe: MoeConfig | None = None
    """Several experts in place of each feed-forward layer; none: one layer for all tokens."""
    num_labels: int = Field(default=0, ge=0, exclude_if=not_)
    """Rows of a classification head in place of the output projection: as many as `data.encode.classification` has
    labels, from which it follows. 0: a language model."""
    pooling: Literal["last", "mean"] = Field(default="last", exclude_if="last".__eq__)
    """Hidden state that the classification head reads: of the text's last token, or the mean of all."""

    encoder_layers: int = Field(default=0, ge=0, exclude_if=not_)
    """Blocks of an encoder that reads the source of each pair (arXiv:1706.03762, section 3.1); num_hidden_layers are
    then those of the decoder. 0: a decoder alone. See `docs/translation.md`."""
    dropout: float = Field(default=0.0, ge=0, lt=1, exclude_if=not_)
    """With an encoder: share of the elements of each sub-layer's output, and of the embeddings, that training sets to
    zero (arXiv:1706.03762, section 5.4)."""
    label_smoothing: float = Field(default=0.0, ge=0, lt=1, exclude_if=not_)
    """With an encoder: share of each target's probability that is spread evenly over the vocabulary
    (arXiv:1512.00567, section 7). Reported losses are without it."""

    @model_validator(mode="before")
    @classmethod
    def _head_width(cls, values: Any) -> Any:
        """Derive the width of a head where none is given.

        A value that is not a number is refused later.
        """
        if not isinstance(values, dict) or values.get("head_dim"):
            return values
        width, heads = values.get("hidden_size"), values.get("num_attention_heads")
        if isinstance(width, int) and isinstance(heads, int) and heads > 0 and width % heads == 0:
            return {**values, "head_dim": width // heads}
        return values

    @model_validator(mode="after")
    def _heads(self) -> ModelConfig:
        if not self.head_dim:
            raise ValueError(
                f"hidden_size = {self.hidden_size} is not a multiple of num_attention_heads = "
                f"{self.num_attention_heads}; change one of them, or set head_dim"
            )
        if self.num_attention_heads % self.num_key_value_heads:
            raise ValueError(
                f"num_attention_heads = {self.num_attention_heads} is not a multiple of num_key_value_heads = "
                f"{self.num_key_value_heads}; choose a divisor of {self.num_attention_heads}"
            )
        return self

    @model_validator(mode="after")
    def _positions(self) -> ModelConfig:
        if self.position_embedding == "rope" and (self.rotary_dim % 2 or not self.rotary_dim):
            raise ValueError(
                f"head_dim x partial_rotary_factor = {self.head_dim} x {self.partial_rotary_factor} gives "
                f"{self.rotary_dim} channels, an odd number or none; the rotary embedding turns pairs of channels, so "
                f"choose another head_dim or number of heads"
            )
        if self.position_embedding == "sinusoidal" and self.hidden_size % 2:
            raise ValueError(f"hidden_size = {self.hidden_size} is odd; sinusoidal positions are pairs of channels")
        scaling = self.rope_scaling
        if scaling is None:
            return self
        if self.position_embedding != "rope":
            raise ValueError(
                f"rope_scaling is set, but position_embedding = {self.position_embedding!r} has nothing to turn; "
                f"remove it, or set position_embedding = 'rope'"
            )
        original = scaling.original_max_position_embeddings
        if original is not None and original > self.max_position_embeddings:
            raise ValueError(
                f"rope_scaling.original_max_position_embeddings = {original} is above max_position_embeddings = "
                f"{self.max_position_embeddings}; raise the latter to {int(original * scaling.factor)}"
            )
        return self

    @model_validator(mode="after")
    def _belongings(self) -> ModelConfig:
        if self.full_attention_every and self.sliding_window is None:
            raise ValueError(
                f"full_attention_every = {self.full_attention_every}, but there is no sliding_window: every layer sees "
                f"all already; set sliding_window, or remove it"
            )
        if self.initialisation == "mup" and self.mup_base_width is None:
            raise ValueError("initialisation = 'mup' needs mup_base_width: the hidden_size that the rate was tuned at")
        if self.initialisation != "mup" and self.mup_base_width is not None:
            raise ValueError(
                f"mup_base_width = {self.mup_base_width} has an effect with initialisation = 'mup' only, which is "
                f"{self.initialisation!r} here; change that, or remove it"
            )
        return self

    @model_validator(mode="after")
    def _parts(self) -> ModelConfig:
        if self.qk_norm_whole and not self.qk_norm:
            raise ValueError("qk_norm_whole = true without qk_norm: nothing is normalised; set qk_norm = true, too")
        if self.position_embedding != "rope" and (self.partial_rotary_factor < 1 or self.rope_local_base_freq):
            raise ValueError(
                f"partial_rotary_factor and rope_local_base_freq apply to rotary positions, but position_embedding = "
                f"{self.position_embedding!r} turns none; remove them, or set position_embedding = 'rope'"
            )
        if self.rope_local_base_freq and self.sliding_window is None:
            raise ValueError(
                f"rope_local_base_freq = {self.rope_local_base_freq} is of layers with a window, and there is none; "
                f"set sliding_window, or rope_theta instead"
            )
        if self.query_pre_attn_scalar and self.initialisation == "mup":
            raise ValueError("query_pre_attn_scalar with initialisation = 'mup', which sets that scale; remove one")
        return self

    @model_validator(mode="after")
    def _encoder(self) -> ModelConfig:
        """Refuse parts that the encoder-decoder does not have, or that need it."""
        if not self.encoder_layers:
            if self.dropout or self.label_smoothing:
                raise ValueError(
                    f"dropout = {self.dropout} and label_smoothing = {self.label_smoothing} need an encoder; "
                    f"set encoder_layers, or remove them"
                )
            return self
        needed = {
            "position_embedding": "sinusoidal",
            "norm_position": "post",
            "num_key_value_heads": self.num_attention_heads,
            "moe": None,
            "sliding_window": None,
            "attn_logit_softcapping": None,
            "qk_norm": False,
            "embedding_norm": False,
            "num_labels": 0,
        }
        if wrong := [name for name, value in needed.items() if getattr(self, name) != value]:
            listed = ", ".join(f"{name} = {needed[name]!r}, not {getattr(self, name)!r}" for name in wrong)
            raise ValueError(f"encoder_layers = {self.encoder_layers} is the original Transformer, which has {listed}")
        if self.initialisation == "mup":
            raise ValueError("encoder_layers with initialisation = 'mup': set 'xavier'; widths are not scaled here")
        return self

    @property
    def gated(self) -> bool:
        """Return whether the feed-forward layer has a gate."""
        return self.feed_forward in ("swiglu", "geglu")

    @property
    def attention_width(self) -> int:
        """Channels of all query heads together."""
        return self.num_attention_heads * self.head_dim

    @property
    def rotary_dim(self) -> int:
        """Channels of a head that are turned."""
        return int(self.head_dim * self.partial_rotary_factor)

    @property
    def width_ratio(self) -> float:
        """Under mup, how many times wider than its base this model is.

        Without mup it is 1.
        """
        return self.hidden_size / self.mup_base_width if self.mup_base_width else 1.0

    @property
    def attention_scale(self) -> float:
        """Factor of query-key products: 1 / sqrt of head_dim or `query_pre_attn_scalar`.

        Under mup 8 / head_dim, since products then grow with the channels; the two agree at 64 channels.
        """
        if self.initialisation == "mup":
            return 8.0 / self.head_dim
        return float((self.query_pre_attn_scalar or self.head_dim) ** -0.5)

    @property
    def tied(self) -> bool:
        """Return whether the output projection is the input embedding.

        A classification head never is.
        """
        return self.tie_word_embeddings and not self.num_labels

    def head_rows(self, vocabulary_size: int) -> int:
        """Rows of the output projection or the classification head."""
        return self.num_labels or padded_vocabulary(vocabulary_size)

    def window(self, layer: int) -> int | None:
        """Tokens that layer number `layer` (from 0) sees.

        None is all of the document so far.
        """
        whole = self.full_attention_every and (layer + 1) % self.full_attention_every == 0
        return None if whole else self.sliding_window


def padded_vocabulary(vocabulary_size: int) -> int:
    """Rows of the embedding.

    The vocabulary, rounded up to a multiple of 128, which suits matrix units.
    """
    # The rest takes part in the softmax, as in Megatron-LM, OLMo-core and nanoGPT: no target has its ids, so training
    # lowers its logits. Without it, every checkpoint would continue with other losses.
    return -(-vocabulary_size // 128) * 128
