"""Few-step, controllable Stable Diffusion in JAX: CCD, iCD, DDS and SDD in one code base."""
