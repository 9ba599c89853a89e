"""Distillation: students that learn from a teacher's distributions (`docs/distillation.md`)."""
