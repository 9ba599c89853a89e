"""The parts of the tokeniser: its vocabulary, the sample that it is trained on, the encoder, and the parity gate."""
