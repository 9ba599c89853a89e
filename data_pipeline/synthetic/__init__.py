"""Texts that a teacher model writes: prompts, endpoint, durable answers, the stage."""
