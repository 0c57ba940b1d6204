"""Reward-guided diffusion and flow sampling in JAX, checked against laws known in closed form."""
