"""Forward processes: noising clean actions, and what a network is trained to predict.

A process is its levels: x_k = signal_k x_0 + noise_k eps. Diffusion has signal_k = sqrt(abar_k) and noise_k =
sqrt(1 - abar_k) (Ho et al. 2020, eq. 4); flow matching the straight line signal_k = t, noise_k = 1 - t from noise at
t = 0 to the action at t = 1 (Lipman et al. 2023, arXiv 2210.02747; Liu et al. 2023, arXiv 2209.03003).

Symbols: K denoising steps, k timestep index 0 .. K-1 (0 is the least noisy), abar_k = prod_{j<=k} (1 - beta_j).
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from burnish.errors import BurnishError
from burnish.registry import load

PREDICTIONS = {
    "epsilon": "burnish.diffusion.predictions:Epsilon",
    "sample": "burnish.diffusion.predictions:Sample",
    "v_prediction": "burnish.diffusion.predictions:VPrediction",
    "velocity": "burnish.diffusion.predictions:Velocity",
}
"""Name -> module:class, of what a network may be trained to give."""


class Process(nn.Module):
    """x_k = signal_k x_0 + noise_k eps.

    Args:
        power, variance: signal_k^2 and noise_k^2, float64 (K,)
        prediction_type: what the network gives, one of `PREDICTIONS`.
        clip_sample: bound of the predicted x_0, or None.
    """

    begins_with_noise = False  # few steps of it begin at its noisiest level, whatever they leave out after it
    signal: Tensor  # (K,)
    noise: Tensor  # (K,)

    def __init__(self, power: Tensor, variance: Tensor, prediction_type: str, clip_sample: float | None):
        super().__init__()
        if prediction_type not in PREDICTIONS:
            raise BurnishError(f"prediction_type={prediction_type}: expected one of {', '.join(PREDICTIONS)}")
        self.prediction_type, self.prediction = prediction_type, load(PREDICTIONS[prediction_type])
        self.clip_sample = clip_sample
        self.power, self.variance = power, variance
        self.register_buffer("signal", power.sqrt().float(), persistent=False)
        self.register_buffer("noise", variance.sqrt().float(), persistent=False)
        self._levels = list(zip(self.signal.tolist(), self.noise.tolist()))  # a chain must not wait for a device

    @property
    def denoising_steps(self) -> int:
        return len(self.power)

    def levels(self, k: Tensor, x: Tensor) -> tuple[Tensor, Tensor]:
        """signal_k and noise_k, shaped to multiply `x`, whose leading dimensions are k's."""
        shape = k.shape + (1,) * (x.dim() - k.dim())
        return self.signal[k].reshape(shape), self.noise[k].reshape(shape)

    def add_noise(self, x0: Tensor, eps: Tensor, k: Tensor) -> Tensor:
        """x_k for clean `x0`, noise `eps` (like `x0`) and timesteps `k` of its leading dimensions."""
        signal, noise = self.levels(k, x0)
        return signal * x0 + noise * eps

    def target(self, x0: Tensor, eps: Tensor, k: Tensor) -> Tensor:
        """What the network shall give for the noised `x0`: regression target (B, ...)."""
        target: Tensor = self.prediction.target(x0, eps, *self.levels(k, x0))
        return target

    def x0_coefs(self) -> Tensor:
        """(K, 3), on the CPU: a, b, c of `predict_x0` before it is clipped, x_0 = (a x - b output) / c."""
        return torch.stack(self.prediction.coefs(*torch.tensor(self._levels).unbind(1)), 1)

    def level(self, k: int) -> tuple[float, float]:
        """signal_k and noise_k as numbers, which no device is waited for."""
        return self._levels[k]

    def predict_x0(self, output: Tensor, x: Tensor, k: Tensor | int) -> Tensor:
        """The network's `output` at (x_k, k) as an estimate of x_0, clipped -> (B, ...)."""
        signal, noise = self.levels(k, x) if isinstance(k, Tensor) else self._levels[k]
        x0: Tensor = self.prediction.x0(output, x, signal, noise)
        return x0 if self.clip_sample is None else x0.clamp(-self.clip_sample, self.clip_sample)


class NoiseProcess(Process):
    """Diffusion: signal_k^2 = abar_k, noise_k^2 = 1 - abar_k. `betas`: float64 (K,); the rest as in `Process`."""

    def __init__(self, betas: Tensor, prediction_type: str = "epsilon", clip_sample: float | None = 1.0):
        abar = torch.cumprod(1 - betas.double(), dim=0)
        super().__init__(abar, 1 - abar, prediction_type, clip_sample)
        self.betas = betas.double()


class FlowProcess(Process):
    """Flow matching: signal_k = t_k, noise_k = 1 - t_k, and the network gives the velocity x_0 - eps.

    `times`: t_k, float64 (K,), decreasing with k; `flow_times` has the grid.
    """

    begins_with_noise = True

    def __init__(self, times: Tensor, clip_sample: float | None = 1.0):
        times = times.double()
        super().__init__(times.square(), (1 - times).square(), "velocity", clip_sample)


def flow_times(K: int) -> Tensor:
    """t_k = 1 - (k + 1) / K: from 0 (all noise, k = K - 1) in steps of 1 / K -> float64 (K,)."""
    return 1 - torch.arange(1, K + 1, dtype=torch.float64) / K
