"""The maths of diffusion (layer 1): arrays in, arrays out; no models, no state, only jax."""
