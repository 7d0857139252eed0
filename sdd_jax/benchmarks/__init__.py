"""What `sdd_jax.aot` and `sdd_jax.bench` measure: workloads, their twins in PyTorch, and the hardware's limits."""
