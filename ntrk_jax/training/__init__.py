"""Training: losses, a small trainer, fine-tuning towards a reward, and the digits model that ships with the package."""

from ntrk_jax.training.adjoint import AdjointMatching, lean_adjoint
from ntrk_jax.training.digits import Digits, DigitsModel, load_digits_model, real_digits, train_digits
from ntrk_jax.training.draws import draw
from ntrk_jax.training.fit import FitState, fit, restore, save
from ntrk_jax.training.losses import DenoisingLoss
from ntrk_jax.training.policy_gradient import PolicyGradient, Trajectory, advantages, ddpo, flow_grpo, gather
from ntrk_jax.training.reward_gradient import AlignProp, DRaFT
from ntrk_jax.training.tilt_rounds import TiltPlan, TiltState, denoise, tilt
from ntrk_jax.training.tilting import TiltLoss, nft_loss, tilt_coefficient, tilt_target

__all__ = [
    "AdjointMatching", "AlignProp", "DRaFT", "DenoisingLoss", "Digits", "DigitsModel", "FitState", "PolicyGradient",
    "TiltLoss", "TiltPlan", "TiltState", "Trajectory", "advantages", "ddpo", "denoise", "draw", "fit", "flow_grpo",
    "gather", "lean_adjoint", "load_digits_model", "nft_loss", "real_digits", "restore", "save", "tilt",
    "tilt_coefficient", "tilt_target", "train_digits",
]  # fmt: skip
