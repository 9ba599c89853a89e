"""What a model is: the section `[model]`, and the sizes that follow from it. Imports no torch."""

from __future__ import annotations

from pydantic import Field, model_validator

from governance.config import Section


class ModelConfig(Section):
    """A decoder-only Transformer; fields as in a Hugging Face Llama configuration, so that export is a copy.

    The vocabulary's size is no setting: it is the token shards', padded to a multiple of 128 (`padded_vocabulary`).
    """

    hidden_size: int = Field(gt=0)
    """Width of the residual stream, in channels."""
    intermediate_size: int = Field(gt=0)
    """Inner width of the SwiGLU feed-forward layer, in channels."""
    num_hidden_layers: int = Field(gt=0)
    """Transformer blocks."""
    num_attention_heads: int = Field(gt=0)
    """Query heads; each is hidden_size / num_attention_heads channels wide."""
    num_key_value_heads: int = Field(gt=0)
    """Key and value heads; fewer than the query heads is grouped-query attention (arXiv:2305.13245)."""
    max_position_embeddings: int = Field(gt=0)
    """Upper bound of the sequence length, in tokens."""
    rope_theta: float = Field(default=10_000.0, gt=0)
    """Base wavelength of the rotary position embedding (arXiv:2104.09864)."""
    rms_norm_eps: float = Field(default=1e-5, gt=0)
    """Added to the mean square in RMSNorm (arXiv:1910.07467)."""
    tie_word_embeddings: bool = False
    """Use the input embedding as the output projection too."""

    @model_validator(mode="after")
    def _heads(self) -> ModelConfig:
        if self.hidden_size % self.num_attention_heads:
            raise ValueError(
                f"hidden_size = {self.hidden_size} is not a multiple of num_attention_heads = "
                f"{self.num_attention_heads}; change one of them"
            )
        if self.num_attention_heads % self.num_key_value_heads:
            raise ValueError(
                f"num_attention_heads = {self.num_attention_heads} is not a multiple of num_key_value_heads = "
                f"{self.num_key_value_heads}; choose a divisor of {self.num_attention_heads}"
            )
        if self.head_dim % 2:
            raise ValueError(
                f"hidden_size / num_attention_heads = {self.head_dim} is odd; the rotary embedding turns pairs of "
                f"channels, so choose fewer or more heads"
            )
        return self

    @property
    def head_dim(self) -> int:
        """Channels of one attention head."""
        return self.hidden_size // self.num_attention_heads


def padded_vocabulary(vocabulary_size: int) -> int:
    """Rows of the embedding: the vocabulary rounded up to a multiple of 128, which matrix units like."""
    return -(-vocabulary_size // 128) * 128
