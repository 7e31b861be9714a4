"""The forward process: noising clean actions, and what a network is trained to predict.

Symbols: K denoising steps, k timestep index 0 .. K-1 (0 is the least noisy), abar_k = prod_{j<=k} (1 - beta_j).
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from burnish.errors import BurnishError

PREDICTION_TYPES = ("epsilon", "sample", "v_prediction")


class NoiseProcess(nn.Module):
    """x_k = sqrt(abar_k) x_0 + sqrt(1 - abar_k) eps (Ho et al. 2020, eq. 4).

    Args:
        betas: float64 (K,)
        prediction_type: what the network gives: "epsilon", "sample" (x_0) or "v_prediction"
            (v = sqrt(abar) eps - sqrt(1 - abar) x_0; Salimans & Ho 2022), in diffusers' words.
        clip_sample: bound of the predicted x_0, or None.
    """

    signal: Tensor  # sqrt(abar_k), (K,)
    noise: Tensor  # sqrt(1 - abar_k), (K,)

    def __init__(self, betas: Tensor, prediction_type: str = "epsilon", clip_sample: float | None = 1.0):
        super().__init__()
        if prediction_type not in PREDICTION_TYPES:
            raise BurnishError(f"prediction_type={prediction_type}: expected one of {', '.join(PREDICTION_TYPES)}")
        self.prediction_type = prediction_type
        self.clip_sample = clip_sample
        self.betas = betas.double()
        self.alphas_cumprod = torch.cumprod(1 - self.betas, dim=0)
        self.register_buffer("signal", self.alphas_cumprod.sqrt().float(), persistent=False)
        self.register_buffer("noise", (1 - self.alphas_cumprod).sqrt().float(), persistent=False)
        self._levels = list(zip(self.signal.tolist(), self.noise.tolist()))  # a chain must not wait for a device

    @property
    def denoising_steps(self) -> int:
        return len(self.betas)

    def levels(self, k: Tensor, x: Tensor) -> tuple[Tensor, Tensor]:
        """sqrt(abar_k) and sqrt(1 - abar_k), shaped to multiply `x`, whose leading dimensions are k's."""
        shape = k.shape + (1,) * (x.dim() - k.dim())
        return self.signal[k].reshape(shape), self.noise[k].reshape(shape)

    def add_noise(self, x0: Tensor, eps: Tensor, k: Tensor) -> Tensor:
        """x_k for clean `x0`, noise `eps` (like `x0`) and timesteps `k` of its leading dimensions."""
        signal, noise = self.levels(k, x0)
        return signal * x0 + noise * eps

    def target(self, x0: Tensor, eps: Tensor, k: Tensor) -> Tensor:
        """What the network shall give for the noised `x0`: regression target (B, ...)."""
        if self.prediction_type == "epsilon":
            return eps
        if self.prediction_type == "sample":
            return x0
        signal, noise = self.levels(k, x0)
        return signal * eps - noise * x0

    def x0_coefs(self) -> Tensor:
        """(K, 3), on the CPU: a, b, c of `predict_x0` before it is clipped, x_0 = (a x - b output) / c."""
        signal, noise = torch.tensor(self._levels).unbind(1)
        one = torch.ones_like(signal)
        if self.prediction_type == "epsilon":
            return torch.stack([one, noise, signal], 1)
        if self.prediction_type == "sample":
            return torch.stack([0 * one, -one, one], 1)
        return torch.stack([signal, noise, one], 1)

    def predict_x0(self, output: Tensor, x: Tensor, k: Tensor | int) -> Tensor:
        """The network's `output` at (x_k, k) as an estimate of x_0, clipped -> (B, ...)."""
        signal, noise = self.levels(k, x) if isinstance(k, Tensor) else self._levels[k]
        if self.prediction_type == "epsilon":
            x0 = (x - noise * output) / signal
        elif self.prediction_type == "sample":
            x0 = output
        else:
            x0 = signal * x - noise * output
        return x0 if self.clip_sample is None else x0.clamp(-self.clip_sample, self.clip_sample)
