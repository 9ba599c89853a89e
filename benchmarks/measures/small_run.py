"""Run file of a small run: one source, two layers, twelve steps; for tests and for measures of whole runs."""

SMALL_RUN = """
[[data.sources]]
type = "jsonl"
name = "tales"
paths = ["*.jsonl"]
licence = "CC0-1.0"

[data.tokenizer]
vocabulary_size = 512

[data.encode]
validation_share = 0.1

[governance]
policy = "policy.toml"
signing_key = "key.pem"

[model]
hidden_size = 32
intermediate_size = 64
num_hidden_layers = 2
num_attention_heads = 2
num_key_value_heads = 1
max_position_embeddings = 64

[optim]
learning_rate = 1e-2
warmup_steps = 2
decay_steps = 4

[train]
sequence_length = 64
global_batch_size = 4
steps = 12
validate_every_steps = 6
validation_rows = 8

[checkpoint]
every_steps = 4

[engine]
micro_batch_size = 4
threads = 1

[tracking]
mode = "disabled"
"""
