"""Training: losses, a small trainer, fine-tuning towards a reward, and the digits model that ships with the package."""

from ntrk_jax.training.adjoint import AdjointMatching, lean_adjoint
from ntrk_jax.training.digits import Digits, DigitsModel, load_digits_model, real_digits, train_digits
from ntrk_jax.training.draws import draw
from ntrk_jax.training.experts import Experts
from ntrk_jax.training.fit import FitState, fit, restore, save
from ntrk_jax.training.guidance_fit import fit_value, learned, load_value, save_value, smc_draws, value_network
from ntrk_jax.training.guidance_net import Group, ValueLoss, balanced, grouped, resampled
from ntrk_jax.training.losses import DenoisingLoss
from ntrk_jax.training.noise_aware import NoiseAware, distil, reward_paths
from ntrk_jax.training.policy_gradient import PolicyGradient, Trajectory, advantages, ddpo, flow_grpo, gather
from ntrk_jax.training.reward_gradient import AlignProp, DRaFT
from ntrk_jax.training.tilt_rounds import TiltPlan, TiltState, denoise, tilt
from ntrk_jax.training.tilting import TiltLoss, nft_loss, tilt_coefficient, tilt_target

__all__ = [
    "AdjointMatching", "AlignProp", "DRaFT", "DenoisingLoss", "Digits", "DigitsModel", "Experts", "FitState", "Group",
    "NoiseAware", "PolicyGradient", "TiltLoss", "TiltPlan", "TiltState", "Trajectory", "ValueLoss", "advantages",
    "balanced", "ddpo", "denoise", "distil", "draw", "fit", "fit_value", "flow_grpo", "gather", "grouped",
    "lean_adjoint", "learned", "load_digits_model", "load_value", "nft_loss", "real_digits", "resampled", "restore",
    "reward_paths", "save", "save_value", "smc_draws", "tilt", "tilt_coefficient", "tilt_target", "train_digits",
    "value_network",
]  # fmt: skip
