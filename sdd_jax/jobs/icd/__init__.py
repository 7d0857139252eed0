"""Jobs of invertible consistency distillation: guidance distillation, both models, editing, evaluation."""
