"""Strict numeric modes, key-reuse checking and several CPU devices, for every test.

Programs are compiled with few optimisations, which halves the time of the suite; tests of bitwise equality between two
programs ask for the default ones (`catalogue.FULL`).
"""

import os

os.environ.setdefault("XLA_FLAGS", "--xla_force_host_platform_device_count=4")

import jax

jax.config.update("jax_numpy_rank_promotion", "raise")
jax.config.update("jax_numpy_dtype_promotion", "strict")
jax.config.update("jax_debug_key_reuse", True)
jax.config.update("jax_disable_most_optimizations", True)
