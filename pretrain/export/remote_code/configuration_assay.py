"""The configuration of a model that Assay trained and that no architecture of `transformers` expresses.

`assay_model` is the section `[model]` of the run, as it was; the other fields repeat what tools look for.
"""

from transformers import PretrainedConfig


class AssayConfig(PretrainedConfig):
    """What `modeling_assay.py` builds a model from."""

    model_type = "assay"
    assay_model: dict | None = None
    vocab_size: int = 128
    hidden_size: int = 32
    intermediate_size: int = 48
    num_hidden_layers: int = 1
    num_attention_heads: int = 1
    num_key_value_heads: int = 1
    max_position_embeddings: int = 32
    tie_word_embeddings: bool = False

    def __init__(self, assay_model=None, **values):
        self.assay_model = dict(assay_model or {})
        sizes = ("hidden_size", "intermediate_size", "num_hidden_layers", "num_attention_heads")
        for name in (*sizes, "num_key_value_heads", "max_position_embeddings"):
            setattr(self, name, values.pop(name, self.assay_model.get(name, getattr(type(self), name))))
        self.vocab_size = values.pop("vocab_size", 128)
        super().__init__(**values)
        self.tie_word_embeddings = False  # `assay_model` ties the weights itself
