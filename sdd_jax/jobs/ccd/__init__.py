"""Jobs of conditional consistency distillation, of its baselines, and their evaluation."""
