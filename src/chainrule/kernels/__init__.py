"""Fast numerics for CPUs: pure functions on tensors, each with a parity test against plain torch."""
