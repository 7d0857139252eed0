"""Jobs of SDD and CLIP guidance, the search for timesteps, and their evaluation."""
