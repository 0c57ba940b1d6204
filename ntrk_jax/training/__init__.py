"""Training: denoising losses, a small trainer, and the digits model that ships with the package."""

from ntrk_jax.training.digits import Digits, DigitsModel, load_digits_model, real_digits, train_digits
from ntrk_jax.training.fit import FitState, fit, restore, save
from ntrk_jax.training.losses import DenoisingLoss

__all__ = [
    "DenoisingLoss", "Digits", "DigitsModel", "FitState", "fit", "load_digits_model", "real_digits", "restore", "save",
    "train_digits",
]  # fmt: skip
