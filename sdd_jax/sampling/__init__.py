"""Running a trained model: generation, inversion, editing (layer 3)."""
