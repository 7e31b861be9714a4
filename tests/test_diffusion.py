"""Schedules and transitions against diffusers and closed forms."""

import importlib.util
import math
from pathlib import Path

import pytest
import torch
from diffusers import DDIMScheduler, DDPMScheduler

from burnish.diffusion import NoiseProcess, Sampler, StdBounds, betas, gaussian_log_prob
from burnish.diffusion.sampler import spaced
from burnish.errors import BurnishError

NAMES = {"cosine": "squaredcos_cap_v2", "linear": "linear", "sigmoid": "sigmoid"}


def process(K=20, schedule="cosine", **kwargs):
    return NoiseProcess(betas(schedule, K), **kwargs)


@pytest.mark.parametrize("denoising_steps", [5, 20, 50, 100])
@pytest.mark.parametrize("schedule", NAMES)
def test_schedules_are_diffusers(schedule, denoising_steps):
    theirs = DDPMScheduler(denoising_steps, beta_schedule=NAMES[schedule], beta_start=1e-3, beta_end=0.5).betas
    assert torch.equal(betas(schedule, denoising_steps, beta_start=1e-3, beta_end=0.5), theirs.double())


def test_vp_schedule_integrates_the_sde():
    """abar_K = exp(-integral of beta) with beta from 0.1 to 10: exp(-(0.1 + 10) / 2)."""
    assert float(torch.prod(1 - betas("vp", 100))) == pytest.approx(math.exp(-5.05), rel=1e-6)


def test_scaled_linear_is_rsm_released():
    torch.testing.assert_close(
        betas("linear", 20, scale=0.8),
        torch.linspace(1e-4, 0.999, 20, dtype=torch.float64) * 0.8,
        rtol=1e-6,
        atol=0,
    )


def test_impossible_schedules_are_refused():
    with pytest.raises(BurnishError, match="cosine, linear, sigmoid, vp"):
        betas("quadratic", 20)
    with pytest.raises(BurnishError, match=r"betas must lie in \(0, 1\)"):
        betas("cosine", 20, scale=2.0)


@pytest.mark.parametrize("prediction_type", ["epsilon", "sample", "v_prediction"])
@pytest.mark.parametrize("schedule", NAMES)
def test_ddpm_mean_is_diffusers(schedule, prediction_type):
    K = 20
    scheduler = DDPMScheduler(
        K,
        trained_betas=betas(schedule, K).numpy(),
        prediction_type=prediction_type,
        clip_sample=True,
        variance_type="fixed_small",
    )
    sampler = Sampler(process(K, schedule, prediction_type=prediction_type))
    torch.manual_seed(0)
    for i, k in enumerate(range(K - 1, -1, -1)):
        x, output = torch.randn(2, 6, 4, 3)
        mean = sampler.mean(output, x, i)
        generator = torch.Generator().manual_seed(i)
        theirs = scheduler.step(output, k, x, generator=generator).prev_sample
        noise = torch.randn(x.shape, generator=torch.Generator().manual_seed(i))
        ours = mean + (sampler.std[i] * noise if k else 0)
        torch.testing.assert_close(ours, theirs, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("spacing", ["leading", "trailing", "linspace"])
@pytest.mark.parametrize("K", [1, 10, 20, 50])
def test_timesteps_are_diffusers(spacing, K):
    scheduler = DDIMScheduler(K, timestep_spacing=spacing)
    for steps in range(1, K + 1):
        scheduler.set_timesteps(steps)
        theirs = scheduler.timesteps.tolist()
        assert spaced(spacing, K, steps).tolist() == theirs[:steps]
        assert len(theirs) == steps or (spacing, K) == ("trailing", 50)  # numpy's arange gives them one more, rarely


@pytest.mark.parametrize("steps", [1, 2, 4, 5, 10, 20])
def test_ddim_is_spaced_as_ever_but_in_one_step_which_begins_with_noise(steps):
    expected = [19] if steps == 1 else [*range(0, 20, 20 // steps)][::-1]
    assert Sampler(process(20), "ddim", steps).timesteps.tolist() == expected
    assert Sampler(process(20), "ddim", steps, spacing="leading").timestep(0) == 20 - 20 // steps


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        ({"prediction_type": "epsilon"}, "at timestep 19 the noise is 406 times the signal"),  # docs/samplers.md
        ({"prediction_type": "sample"}, None),
        ({"prediction_type": "v_prediction"}, None),
        ({"prediction_type": "sample", "spacing": "leading"}, "its only step is at timestep 0"),
        ({"prediction_type": "epsilon", "steps": 2}, None),
    ],
)
def test_one_step_that_cannot_work_is_told(settings, said):
    forward = process(20, prediction_type=settings["prediction_type"])
    doubt = Sampler(forward, "ddim", settings.get("steps", 1), spacing=settings.get("spacing")).doubt
    assert doubt is None if said is None else said in doubt


@pytest.mark.parametrize("spacing", ["leading", "trailing"])
@pytest.mark.parametrize("eta", [0.0, 0.5, 1.0])
@pytest.mark.parametrize("steps", [1, 5, 20])
def test_ddim_step_is_diffusers(eta, steps, spacing):
    K = 20
    scheduler = DDIMScheduler(
        K,
        trained_betas=betas("cosine", K).numpy(),
        clip_sample=True,
        set_alpha_to_one=True,
        timestep_spacing=spacing,
    )
    scheduler.set_timesteps(steps)
    sampler = Sampler(process(K), "ddim", steps=steps, eta=eta, spacing=spacing)
    assert sampler.timesteps.tolist() == scheduler.timesteps.tolist()
    torch.manual_seed(0)
    for i, k in enumerate(sampler.timesteps.tolist()):
        x, output, noise = torch.randn(3, 6, 4, 3)
        theirs = scheduler.step(output, k, x, eta=eta, use_clipped_model_output=True, variance_noise=noise).prev_sample
        ours = sampler.mean(output, x, i) + sampler.std[i] * noise
        torch.testing.assert_close(ours, theirs, atol=2e-5, rtol=1e-5)


def test_ddim_with_all_steps_and_eta_1_is_ddpm():
    ddpm, ddim = Sampler(process()), Sampler(process(), "ddim", steps=20, eta=1.0)
    torch.testing.assert_close(ddim.std, ddpm.std)
    torch.testing.assert_close(ddim.coef_x, ddpm.coef_x, atol=1e-6, rtol=1e-5)
    torch.testing.assert_close(ddim.coef_x0, ddpm.coef_x0, atol=1e-6, rtol=1e-5)


def test_mean_of_a_batch_of_steps_is_the_mean_of_each():
    sampler = Sampler(process())
    x, output = torch.randn(2, 20, 4, 3)
    together = sampler.mean(output, x, torch.arange(20))
    apart = torch.cat([sampler.mean(output[i : i + 1], x[i : i + 1], i) for i in range(20)])
    torch.testing.assert_close(together, apart)


@pytest.mark.parametrize(("kind", "eta"), [("ddpm", 0.0), ("ddim", 0.0), ("ddim", 1.0)])
def test_sampling_recovers_a_gaussian(kind, eta):
    """With the exact score of N(m, s^2) the chain ends in N(m, s^2), up to the discretisation."""
    m, s = 0.3, 0.2
    noise_process = process(1000, clip_sample=None)
    sampler = Sampler(noise_process, kind, steps=1000, eta=eta)

    def denoise(x, i):
        k = sampler.timesteps[i]
        signal, noise = noise_process.signal[k], noise_process.noise[k]
        return noise * (x - signal * m) / (signal**2 * s**2 + noise**2)  # E[eps | x]

    torch.manual_seed(0)
    sample, _ = sampler.sample(denoise, torch.randn(len(sampler) + 1, 20_000, 1))
    assert float(sample.mean()) == pytest.approx(m, abs=0.01)
    assert float(sample.std()) == pytest.approx(s, abs=0.01)


@pytest.mark.parametrize("kind", ["ddpm", "ddim"])
def test_a_sampler_of_a_process_on_another_device(kind):
    """As when a policy on a GPU gets another sampler; the meta device is the one that is everywhere."""
    sampler, other = Sampler(process(), kind), Sampler(process().to("meta"), kind)
    for name in ("coef_x0", "coef_x", "std", "timesteps", "transitions"):
        assert torch.equal(getattr(sampler, name), getattr(other, name))


def test_ddim_eta_0_ignores_the_noise_of_its_transitions():
    sampler = Sampler(process(), "ddim", steps=5, eta=0.0)
    noise = torch.randn(6, 8, 4, 3)
    other = torch.cat([noise[:1], torch.randn(5, 8, 4, 3)])
    first, second = (sampler.sample(lambda x, i: 0.1 * x, n)[0] for n in (noise, other))
    assert torch.equal(first, second)


def test_bounds_and_truncated_noise_of_a_chain():
    sampler = Sampler(process())
    bounds = StdBounds(floor=0.1, ceiling=0.5)
    std = sampler.bounded_std(bounds)
    assert float(std.min()) == pytest.approx(0.1) and float(std.max()) == pytest.approx(0.5)
    noise = torch.full((21, 2, 4, 3), 10.0)
    x, chain = sampler.sample(lambda x, i: 0.0 * x, noise, bounds=bounds, noise_clip=3.0, keep=10)
    assert chain.x.shape == (2, 11, 4, 3) and chain.mean.shape == (2, 10, 4, 3)
    torch.testing.assert_close(chain.x[:, -1], x)
    # every kept transition moved by 3 of its bounded standard deviations
    moved = (chain.x[:, 1:] - chain.mean) / std[-10:, None, None]
    torch.testing.assert_close(moved, torch.full_like(moved, 3.0))


@pytest.mark.parametrize("keep", [0, 1, 20])
def test_any_number_of_transitions_is_kept(keep):
    x, chain = Sampler(process()).sample(lambda x, i: x, torch.randn(21, 2, 4, 3), keep=keep)
    assert chain.mean.shape[1] == keep
    assert chain.x.shape[1] == (keep + 1 if keep else 0)
    if keep:
        assert torch.equal(chain.x[:, -1], x)


def test_log_prob_is_torchs_normal():
    x, mean = torch.randn(2, 5, 4, 3)
    std = torch.rand(5, 1, 1) + 0.1
    torch.testing.assert_close(gaussian_log_prob(x, mean, std), torch.distributions.Normal(mean, std).log_prob(x))


@pytest.mark.parametrize("prediction_type", ["epsilon", "sample", "v_prediction"])
def test_x0_from_the_exact_target(prediction_type):
    noise_process = process(prediction_type=prediction_type)
    x0, eps = torch.rand(20, 4, 3) * 2 - 1, torch.randn(20, 4, 3)
    k = torch.arange(20)
    x = noise_process.add_noise(x0, eps, k)
    recovered = noise_process.predict_x0(noise_process.target(x0, eps, k), x, k)
    torch.testing.assert_close(recovered[:-1], x0[:-1], atol=1e-4, rtol=1e-4)
    theirs = DDPMScheduler(20, trained_betas=noise_process.betas.numpy())
    torch.testing.assert_close(x, theirs.add_noise(x0, eps, k), atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(
        process(prediction_type="v_prediction").target(x0, eps, k),
        theirs.get_velocity(x0, eps, k),
        atol=1e-5,
        rtol=1e-5,
    )


@pytest.mark.parametrize(("kind", "steps", "eta"), [("ddpm", 20, 1.0), ("ddim", 5, 1.0), ("ddim", 5, 0.0)])
def test_samples_are_as_narrow_as_the_closed_form_says(kind, steps, eta):
    """A perfect denoiser of N(0, 0.3^2); benchmarks/narrowing.py explains why that matters for DPMD."""
    path = Path(__file__).resolve().parent.parent / "benchmarks" / "narrowing.py"
    spec = importlib.util.spec_from_file_location("narrowing", path)
    narrowing = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(narrowing)
    sampler = Sampler(NoiseProcess(betas("cosine", 20), clip_sample=None), kind, steps, eta)
    abar = sampler.process.power.float()

    def denoise(x, i):  # eps = (x - sqrt(abar) E[x_0 | x]) / sqrt(1 - abar)
        a = abar[sampler.timestep(i)]
        x0 = a.sqrt() * 0.09 / (a * 0.09 + 1 - a) * x
        return (x - a.sqrt() * x0) / (1 - a).sqrt()

    noise = torch.randn(len(sampler) + 1, 200_000, 1, generator=torch.Generator().manual_seed(0))
    x, _ = sampler.sample(denoise, noise)
    assert float(x.std()) == pytest.approx(narrowing.sampled_std(sampler, 0.3), rel=0.01)
    assert float(x.std()) < 0.26


@pytest.mark.parametrize("temperature", [0.0, 0.5, 1.0])
@pytest.mark.parametrize("kind", ["ddpm", "ddim"])
def test_temperature_is_a_factor_on_all_noise(kind, temperature):
    """The chain at tau is that at 1 from tau times the noise, its start included."""
    one, tempered = (Sampler(process(), kind, 5, 1.0, tau) for tau in (1.0, temperature))
    noise = torch.randn(len(one) + 1, 4, 2, 3)
    x, chain = tempered.sample(lambda x, i: 0.1 * x + 0.2, noise, keep=len(one))
    scaled, _ = one.sample(lambda x, i: 0.1 * x + 0.2, temperature * noise, keep=len(one))
    torch.testing.assert_close(x, scaled)
    torch.testing.assert_close(chain.x[:, 0], temperature * noise[0])
    torch.testing.assert_close(tempered.bounded_std(StdBounds()), temperature * one.bounded_std(StdBounds()))


@pytest.mark.parametrize("temperature", [1.0, 0.5])
@pytest.mark.parametrize(("kind", "steps", "eta"), [("ddim", 5, 1.0), ("ddim", 10, 0.0), ("ddpm", 20, 1.0)])
def test_widened_chains_are_as_wide_as_the_data(kind, steps, eta, temperature):
    """Of data N(0, s^2) the best denoiser is x0hat = c x; with its errors a chain of few steps is exact."""
    s, forward = 0.4, process(clip_sample=None)
    abar = forward.power
    gain = abar.sqrt() * s**2 / (abar * s**2 + 1 - abar)
    errors = s**2 * (1 - abar) / (abar * s**2 + 1 - abar)
    sampler = Sampler(forward, kind, steps, eta, temperature)
    sampler.widen(errors.float())

    def denoise(x, i):
        k = sampler.timestep(i)
        return (x - abar[k].sqrt() * gain[k] * x) / (1 - abar[k]).sqrt()

    noise = torch.randn(len(sampler) + 1, 60_000, 1, 1, generator=torch.Generator().manual_seed(0))
    x, _ = sampler.sample(denoise, noise)
    assert float(x.std()) == pytest.approx(temperature * s, rel=0.02)


@pytest.mark.parametrize("clip_sample", [0.7, None])
@pytest.mark.parametrize("prediction_type", ["epsilon", "sample", "v_prediction"])
def test_the_table_for_compiled_chains_gives_the_same_means(prediction_type, clip_sample):
    sampler = Sampler(process(prediction_type=prediction_type, clip_sample=clip_sample), "ddim", 5, 0.5)
    x, output = torch.randn(2, 6, 4, 3)
    for i, (a, b, c, clip, coef_x0, coef_x) in enumerate(sampler.transitions.tolist()):
        x0 = ((a * x - b * output) / c).clamp(-clip, clip)
        torch.testing.assert_close(coef_x0 * x0 + coef_x * x, sampler.mean(output, x, i), atol=1e-5, rtol=1e-5)
