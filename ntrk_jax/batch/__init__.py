"""Batch runs: planned, sharded, resumable, stored.

    plan (units x samples, each with a name) -> chunks, one a device -> a Zarr store that any reader opens

`make_plan` says what is to be drawn, `preview` what it would cost, `run` draws what a store does not hold yet.
"""

from ntrk_jax.batch.draw import Drawn, draw_one
from ntrk_jax.batch.guard import Guard
from ntrk_jax.batch.pipeline import RewardError
from ntrk_jax.batch.plan import Plan, Unit, make_plan
from ntrk_jax.batch.runner import Report, preview, run
from ntrk_jax.batch.shard import Program, make_mesh
from ntrk_jax.batch.store import Store, StoreError

__all__ = [
    "Drawn", "Guard", "Plan", "Program", "Report", "RewardError", "Store", "StoreError", "Unit", "draw_one",
    "make_mesh", "make_plan", "preview", "run",
]  # fmt: skip
