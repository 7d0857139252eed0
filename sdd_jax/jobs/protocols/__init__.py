"""The papers' evaluations of a model, a run, or a folder of results."""
