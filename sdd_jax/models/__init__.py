"""Flax Linen networks and their weights (layer 2), named parameter by parameter after diffusers' state dicts."""
