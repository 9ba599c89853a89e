"""Export of checkpoints to Hugging Face folders."""
