"""Data: the embedded world of portraits, outside sources, the step-indexed stream, degradations and caches."""
