"""How much of a distribution's width a sampler keeps, and what refreshes make of it: in closed form, no training.

    python benchmarks/narrowing.py

For data N(0, std^2) the perfect denoiser is linear, so every transition is too, and the variance of the samples follows
by recursion. A refresh of DPMD's old policy with constant weights fits the samples: they are the next data.
"""

from __future__ import annotations

from burnish.diffusion import NoiseProcess, Sampler, betas

STD, REFRESHES = 0.3, 4


def sampled_std(sampler: Sampler, std: float) -> float:
    """Standard deviation of `sampler`'s samples with the perfect denoiser of N(0, std^2)."""
    variance = 1.0  # the chain starts from N(0, 1)
    for i in range(len(sampler)):
        abar = float(sampler.process.power[sampler.timestep(i)])
        # E[x_0 | x_k] = sqrt(abar) std^2 / (abar std^2 + 1 - abar) x_k
        slope = abar**0.5 * std**2 / (abar * std**2 + 1 - abar)
        factor = float(sampler.coef_x0[i]) * slope + float(sampler.coef_x[i])
        variance = factor**2 * variance + float(sampler.std[i]) ** 2
    return variance**0.5


def main() -> None:
    process = NoiseProcess(betas("cosine", 20), clip_sample=None)
    settings = [("ddpm", 20, 1.0), ("ddim", 5, 1.0), ("ddim", 5, 0.0), ("ddim", 10, 0.0), ("ddim", 20, 0.0)]
    for kind, steps, eta in settings:
        sampler, stds = Sampler(process, kind, steps, eta), [STD]
        for _ in range(REFRESHES):
            stds.append(sampled_std(sampler, stds[-1]))
        name = "DDPM, 20 steps" if kind == "ddpm" else f"DDIM, {steps} steps, eta {eta:.0f}"
        print(f"| {name} | " + " | ".join(f"{std:.3f}" for std in stds[1:]) + " |")


if __name__ == "__main__":
    main()
