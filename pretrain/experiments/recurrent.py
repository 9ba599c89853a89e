"""Language models of equal form: Transformer, LSTM, GRU and xLSTM.

All have a tied embedding and read a row as one stream: neither state nor attention ends at a document's end, because a
recurrent network has no mask. A recurrent layer is RMSNorm, LSTM or GRU, and a residual. "With attention" adds one
layer of causal self-attention above the last recurrent one, the same module as the Transformer's; positions come from
the recurrence. xLSTM (arXiv:2405.04517) is the package `xlstm`'s stack of mLSTM blocks, run in chunks: its own form for
training holds length x length matrices.
"""

from __future__ import annotations

from typing import Any, Literal

import torch
from torch import nn

from governance.errors import ConfigError
from pretrain.config.model import ModelConfig, padded_vocabulary
from pretrain.experiments.claims_config import Architecture, Shape
from pretrain.model.attention import document_mask
from pretrain.model.decoder import Stack, single_documents
from pretrain.model.init import initial_weight
from pretrain.model.layers import Attention, make_norm
from pretrain.model.loss import Logits, cross_entropy

_CHUNK = 64  # tokens that an mLSTM computes at once, as the package's own kernels do
_DEVIATION = 0.02  # standard deviation of an embedding's first weights


class LanguageModel(nn.Module):
    """Token ids [B, L] to hidden states [B, L, width].

    The embedding is the output projection, too.
    """

    def __init__(self, embedding: nn.Embedding, body: nn.Module) -> None:
        super().__init__()
        self.embed_tokens = embedding
        self.body = body

    def forward(self, tokens: torch.Tensor) -> torch.Tensor:
        """Hidden states."""
        hidden: torch.Tensor = self.body(tokens, self.embed_tokens)
        return hidden

    def nats(self, tokens: torch.Tensor, targets: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Sum of the cross entropies, and each target's own, in row order.

        Only positions with a target meet the output projection.
        """
        hidden, wanted = self(tokens), targets >= 0
        return cross_entropy(hidden[wanted], self.embed_tokens.weight, targets[wanted], Logits())


class TransformerBody(nn.Module):
    """Trainer's own stack; the embedding is the stack's."""

    def __init__(self, stack: Stack) -> None:
        super().__init__()
        self.stack = stack

    def forward(self, tokens: torch.Tensor, embed: nn.Module) -> torch.Tensor:
        """[B, L] -> [B, L, width]."""
        hidden: torch.Tensor = self.stack(tokens, *single_documents(tokens))[0]
        return hidden


class RecurrentLayer(nn.Module):
    """RMSNorm, LSTM or GRU, and the residual."""

    def __init__(self, config: ModelConfig, kind: type[nn.RNNBase]) -> None:
        super().__init__()
        self.norm = make_norm(config)
        self.cell = kind(config.hidden_size, config.hidden_size, batch_first=True)

    def forward(self, x: torch.Tensor, mask: Any) -> torch.Tensor:
        """[B, L, width] -> [B, L, width]."""
        return x + self.cell(self.norm(x))[0]


class AttentionLayer(nn.Module):
    """RMSNorm, causal self-attention without positions, and the residual."""

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        self.norm, self.self_attn = make_norm(config), Attention(config, 0)

    def forward(self, x: torch.Tensor, mask: Any) -> torch.Tensor:
        """[B, L, width] -> [B, L, width]."""
        return x + self.self_attn(self.norm(x), None, mask)


class RecurrentBody(nn.Module):
    """Recurrent layers, perhaps one of attention, and a norm."""

    def __init__(self, config: ModelConfig, kind: type[nn.RNNBase], attends: bool) -> None:
        super().__init__()
        self.config = config
        layers: list[nn.Module] = [RecurrentLayer(config, kind) for _ in range(config.num_hidden_layers)]
        self.layers = nn.ModuleList([*layers, *([AttentionLayer(config)] if attends else [])])
        self.norm = make_norm(config)

    def forward(self, tokens: torch.Tensor, embed: nn.Module) -> torch.Tensor:
        """[B, L] -> [B, L, width]."""
        x, mask = embed(tokens), document_mask(torch.zeros_like(tokens, dtype=torch.int32), self.config)
        for layer in self.layers:
            x = layer(x, mask)
        return self.norm(x)


class XlstmBody(nn.Module):
    """Package `xlstm`'s stack of mLSTM blocks."""

    def __init__(self, stack: nn.Module) -> None:
        super().__init__()
        self.layers, self.norm = stack.blocks, stack.post_blocks_norm

    def forward(self, tokens: torch.Tensor, embed: nn.Module) -> torch.Tensor:
        """[B, L] -> [B, L, width]."""
        x = embed(tokens)
        for layer in self.layers:
            x = layer(x)
        return self.norm(x)


def build(architecture: Architecture, shape: Shape, vocabulary_size: int, seed: int | None = None) -> LanguageModel:
    """Model of a width, with the first weights of `seed`.

    Without a seed it is on the meta device: sizes without memory.

    Raises:
        ConfigError: xlstm is asked for, and its package is not installed.
    """
    device = torch.device("meta" if seed is None else "cpu")
    if seed is not None:
        torch.manual_seed(seed)
    with device:
        embedding, body = nn.Embedding(padded_vocabulary(vocabulary_size), shape.width), nn.Module()
        config = model_config(shape, "rope" if architecture == "transformer" else "none")
        if architecture == "transformer":
            stack = Stack(config, vocabulary_size, "none", None)
            embedding, body = stack.embed_tokens, TransformerBody(stack)
        elif architecture == "xlstm":
            body = XlstmBody(_xlstm(shape))
        else:
            kind = nn.LSTM if architecture.startswith("lstm") else nn.GRU
            body = RecurrentBody(config, kind, architecture.endswith("attention"))
        model = LanguageModel(embedding, body)
    if seed is not None:
        _begin(model, config, seed)
    return model


def model_config(shape: Shape, positions: Literal["rope", "none"]) -> ModelConfig:
    """Transformer of a shape, in Llama's form.

    Its feed-forward layer is 8/3 as wide as the stream.
    """
    return ModelConfig.model_validate({
        "hidden_size": shape.width, "intermediate_size": 8 * shape.width // 3, "num_hidden_layers": shape.layers,
        "num_attention_heads": shape.heads, "num_key_value_heads": shape.heads, "tie_word_embeddings": True,
        "max_position_embeddings": 1 << 20, "position_embedding": positions,
    })  # fmt: skip


@torch.no_grad()
def _begin(model: LanguageModel, config: ModelConfig, seed: int) -> None:
    """First weights.

    The Transformer's and attention's are the trainer's; an LSTM remembers at first (forget gates of 1, Jozefowicz et
    al. 2015); xLSTM's are its package's.
    """
    model.embed_tokens.weight.normal_(0.0, _DEVIATION)
    if isinstance(model.body, XlstmBody):
        return
    for name, parameter in model.body.named_parameters():
        if name.endswith("embed_tokens.weight"):  # all models' embedding begins alike
            continue
        if ".cell." not in name:
            parameter.copy_(initial_weight(name, parameter.shape, config, seed))
        elif "bias_ih" in name and parameter.numel() == 4 * config.hidden_size:
            parameter.view(4, -1)[1] = 1.0


def _xlstm(shape: Shape) -> nn.Module:
    try:
        from mlstm_kernels.torch.chunkwise.native import mlstm_chunkwise__native_autograd as chunkwise
        from xlstm import mLSTMBlockConfig, mLSTMLayerConfig, xLSTMBlockStack, xLSTMBlockStackConfig
    except ImportError as error:
        raise ConfigError(
            f"claims.architectures names 'xlstm', but its package cannot be imported ({error}). Install it with: pip "
            f"install 'assay-pretrain[xlstm]', or leave 'xlstm' out of claims.architectures"
        ) from error
    multiple = 4 * shape.heads  # of which the inner width is one: finer than the package's 64, so that sizes match
    layer = mLSTMBlockConfig(mlstm=mLSTMLayerConfig(num_heads=shape.heads, round_proj_up_to_multiple_of=multiple))
    sizes = xLSTMBlockStackConfig(
        mlstm_block=layer, context_length=1, num_blocks=shape.layers, embedding_dim=shape.width
    )
    stack = xLSTMBlockStack(sizes)

    def in_chunks(queries: Any, keys: Any, values: Any, igate_preact: Any, fgate_preact: Any, **_: Any) -> Any:
        length = queries.shape[2]
        size = min(_CHUNK, length)
        padding = -length % size
        given = [queries, keys, values, igate_preact, fgate_preact]
        if padding:
            given = [nn.functional.pad(one, (0, 0, 0, padding)) for one in given]
        q, k, v, i, f = given
        out = chunkwise(q=q, k=k, v=v, i=i.squeeze(-1), f=f.squeeze(-1), chunk_size=size, return_last_states=False)
        return out[:, :, :length]

    for block in stack.blocks:
        block.xlstm.mlstm_cell.backend_fn = in_chunks
    return stack


def parameters_of(model: nn.Module) -> int:
    """Parameters, tied ones once."""
    return sum(parameter.numel() for parameter in model.parameters())


def flops_of(model: LanguageModel, sequence_length: int) -> int:
    """Floating-point operations of forward and backward per token, in `pretrain/model/flops.py`'s convention.

    They are 6 N + 12 x width x tokens seen. An mLSTM sees its chunk, and its matrix memory (head size squared) instead
    of what came before.
    """
    weights = sum(parameter.numel() for parameter in model.parameters() if parameter.ndim > 1)
    seen = 0
    for module in model.modules():
        if isinstance(module, Attention):
            seen += module.q_proj.out_features * sequence_length
        elif type(module).__name__ == "mLSTMCell":
            width = module.config.embedding_dim
            seen += width * (min(_CHUNK, sequence_length) + width // module.config.num_heads)
    return 6 * weights + 12 * seen
