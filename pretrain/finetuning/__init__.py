"""Fine-tuning: parameters that learn, those that stay, and low-rank adapters."""
