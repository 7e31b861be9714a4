"""The policy: normalizer, networks, chain over two denoisers, saving and loading."""

import json
import math

import numpy as np
import pytest
import torch

from burnish import DiffusionPolicy
from burnish.errors import BurnishError
from burnish.networks import DenoiserConfig, build_denoiser
from burnish.networks.compiled import mlp as compiled_mlp
from burnish.policies.diffusion import PolicyConfig
from burnish.policies.gaussian import GaussianPolicy, GaussianPolicyConfig
from burnish.policies.normalizer import Normalizer

SMALL = DenoiserConfig(hidden_dim=32, n_layers=2)


def make_policy(**kwargs):
    torch.manual_seed(0)
    config = PolicyConfig(denoiser=kwargs.pop("denoiser", SMALL), **kwargs)
    return DiffusionPolicy(config, obs_dim=5, action_dim=3, obs_keys=["flat"], task="test").eval()


def test_normalizer_min_max_and_constant_dimension():
    data = torch.tensor([[0.0, 5.0, -2.0], [4.0, 5.0, 2.0], [1.0, 5.0, 0.0]])
    normalizer = Normalizer(3)
    normalizer.fit(data, "min_max")
    expected = torch.tensor([[-1.0, 0.0, -1.0], [1.0, 0.0, 1.0], [-0.5, 0.0, 0.0]])
    torch.testing.assert_close(normalizer.normalize(data), expected)
    torch.testing.assert_close(normalizer.unnormalize(expected), data)
    assert float(normalizer.normalize(torch.tensor([0.0, 5.5, 0.0]))[1]) == pytest.approx(0.5)


def test_normalizer_mean_std_is_numpys():
    data = torch.randn(100, 4) * 3 + 1
    normalizer = Normalizer(4)
    normalizer.fit(data, "mean_std")
    expected = (data.numpy() - data.numpy().mean(0)) / data.numpy().std(0)
    np.testing.assert_allclose(normalizer.normalize(data).numpy(), expected, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("name", ["mlp", "unet"])
@pytest.mark.parametrize("horizon", [1, 4, 7])
def test_denoisers_use_all_their_inputs(name, horizon):
    config = DenoiserConfig(name=name, hidden_dim=32, channels=[16, 32])
    torch.manual_seed(0)
    network = build_denoiser(config, obs_dim=6, horizon=horizon, action_dim=3, denoising_steps=10)
    x, obs, k = torch.randn(4, horizon, 3), torch.randn(4, 6), torch.tensor([0, 3, 5, 9])
    out = network(x, k, network.encode(obs))
    assert out.shape == x.shape
    for other in (
        network(x + 1, k, network.encode(obs)),
        network(x, k.flip(0), network.encode(obs)),
        network(x, k, network.encode(obs + 1)),
    ):
        assert (other - out).abs().amax() > 1e-4
    each = torch.cat([network(x[i : i + 1], k[i], network.encode(obs[i : i + 1])) for i in range(4)])
    torch.testing.assert_close(each, out, atol=1e-5, rtol=1e-5)  # a scalar timestep, a batch of one


def test_residual_mlp_has_dppos_depth():
    """DPPO's 3 x 512: a layer in, one residual block of two layers, a layer out."""
    config = DenoiserConfig(hidden_dim=64, n_layers=3, residual=True)
    network = build_denoiser(config, obs_dim=6, horizon=4, action_dim=3, denoising_steps=10)
    assert sum(isinstance(m, torch.nn.Linear) and m.in_features == 64 for m in network.modules()) >= 3


def test_act_numpy_and_tensor():
    policy = make_policy(n_obs_steps=2, horizon=6, n_action_steps=3)
    obs = np.random.default_rng(0).normal(size=(7, 2, 5)).astype(np.float32)
    noise = policy.draw_noise(7, generator=torch.Generator().manual_seed(0))
    actions = policy.act(obs, noise=noise)
    assert isinstance(actions, np.ndarray) and actions.shape == (7, 3, 3) and np.abs(actions).max() <= 1
    np.testing.assert_array_equal(policy.act(torch.from_numpy(obs), noise=noise).numpy(), actions)
    with pytest.raises(BurnishError, match=r"expected \(B, To, Do\) = \(B, 2, 5\)"):
        policy.act(obs[:, :1])


def test_frozen_steps_never_run_the_finetuned_net_and_the_reverse(monkeypatch):
    """Step by step; tests/test_compiled_mlp.py has the same for compiled chains."""
    monkeypatch.setattr(compiled_mlp, "_library", lambda: None)
    policy = make_policy()
    policy.start_finetuning(4)
    calls = {"denoiser": [], "finetuned": []}
    for name, network in (("denoiser", policy.denoiser), ("finetuned", policy.finetuned)):
        network.register_forward_pre_hook(lambda _, inputs, name=name: calls[name].append(int(inputs[1])))
    policy.act(np.zeros((2, 1, 5), np.float32))
    assert calls == {"denoiser": list(range(19, 3, -1)), "finetuned": [3, 2, 1, 0]}
    policy.sample(torch.zeros(2, 5), policy.draw_noise(2), pretrained=True)
    assert len(calls["finetuned"]) == 4


def test_starting_to_finetune_changes_nothing_and_freezes_the_base():
    policy = make_policy()
    obs, noise = np.ones((3, 1, 5), np.float32), policy.draw_noise(3)
    before = policy.act(obs, noise=noise)
    policy.start_finetuning(10)
    np.testing.assert_array_equal(policy.act(obs, noise=noise), before)
    assert not any(p.requires_grad for p in policy.denoiser.parameters())
    assert all(p.requires_grad for p in policy.finetuned.parameters())


@pytest.mark.parametrize("steps", [0, 21])
def test_impossible_number_of_finetuned_steps(steps):
    with pytest.raises(BurnishError, match=rf"ft_denoising_steps={steps} \(K'\): expected 1 to 20"):
        make_policy().start_finetuning(steps)


@pytest.mark.parametrize("ft_denoising_steps", [0, 3])
def test_a_saved_policy_evaluates_alone(tmp_path, ft_denoising_steps):
    policy = make_policy(sampler="ddim", ddim_steps=5)
    policy.obs_normalizer.fit(torch.randn(10, 5), "min_max")
    if ft_denoising_steps:
        policy.start_finetuning(ft_denoising_steps)
        with torch.no_grad():
            for parameter in policy.finetuned.parameters():
                parameter.add_(0.1)
    policy.save(tmp_path / "policy")
    loaded = DiffusionPolicy.load(tmp_path / "policy")
    obs, noise = np.ones((3, 1, 5), np.float32), policy.draw_noise(3)
    np.testing.assert_array_equal(loaded.act(obs, noise=noise), policy.act(obs, noise=noise))
    assert loaded.config == policy.config and loaded.ft_denoising_steps == ft_denoising_steps


def spoil_json(folder):
    (folder / "policy.json").write_text("{")


def spoil_key(folder):
    description = json.loads((folder / "policy.json").read_text())
    description["config"]["horizont"] = 3
    (folder / "policy.json").write_text(json.dumps(description))


def spoil_weights(folder):
    path = folder / "policy.safetensors"
    path.write_bytes(path.read_bytes()[:-100])


def spoil_shape(folder):
    description = json.loads((folder / "policy.json").read_text())
    description["obs_dim"] = 6
    (folder / "policy.json").write_text(json.dumps(description))


@pytest.mark.parametrize(
    ("spoil", "message"),
    [
        (lambda folder: (folder / "policy.safetensors").unlink(), "policy.safetensors is missing"),
        (lambda folder: (folder / "policy.json").unlink(), "policy.json is missing"),
        (spoil_json, "policy.json is damaged"),
        (spoil_key, "horizon"),
        (spoil_weights, "policy.safetensors is damaged"),
        (spoil_shape, "does not fit policy.json"),
    ],
)
def test_damaged_policy_folders(tmp_path, spoil, message):
    make_policy().save(tmp_path / "policy")
    spoil(tmp_path / "policy")
    with pytest.raises(BurnishError, match=message):
        DiffusionPolicy.load(tmp_path / "policy")


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"n_action_steps": 5}, r"n_action_steps=5 \(Ta\) is larger than horizon=4"),
        ({"sampler": "ddim", "ddim_steps": 21}, "ddim_steps=21: expected 1 to denoising_steps=20"),
        ({"action_normalization": "mean_std"}, "clip_sample=null"),
        ({"schedule": "cosin"}, "schedule=cosin"),
        ({"denoising_steps": 0}, "denoising_steps=0"),
        ({"eta": 1.5}, "eta=1.5"),
    ],
)
def test_impossible_configurations(settings, message):
    with pytest.raises(BurnishError, match=message):
        PolicyConfig(**settings)


def test_loss_is_the_mean_squared_error_of_the_noise():
    """By hand, with the same draws: timesteps first, then noise."""
    policy = make_policy()
    obs, actions = torch.randn(6, 1, 5), torch.rand(6, 4, 3)
    loss = policy.loss(obs, actions, torch.Generator().manual_seed(1))
    generator = torch.Generator().manual_seed(1)
    k = torch.randint(20, (6,), generator=generator)
    eps = torch.randn(6, 4, 3, generator=generator)
    abar = policy.process.alphas_cumprod[k].float()[:, None, None]
    x = abar.sqrt() * actions + (1 - abar).sqrt() * eps
    expected = (policy.denoiser(x, k, policy.denoiser.encode(obs.flatten(1))) - eps).square().mean()
    assert float(loss.detach()) == pytest.approx(float(expected.detach()), rel=1e-5)


def test_a_policy_samples_as_it_was_told(tmp_path):
    """At temperature 0 twice the same chunk, whatever the noise; of n chunks their mean; kept in its folder."""
    policy, obs = make_policy(), np.random.default_rng(0).normal(size=(5, 1, 5)).astype(np.float32)

    def act(seed, policy=policy):
        return policy.act(obs, generator=torch.Generator().manual_seed(seed))

    assert not np.array_equal(act(0), act(1))
    at_one = act(0)
    with policy.sampling(temperature=0.0):
        still = act(0)
        assert np.array_equal(still, act(1))
    assert np.array_equal(at_one, act(0))
    with policy.sampling(mean_of=16):
        assert policy.noise_shape() == (len(policy.sampler) + 1, 16, policy.config.horizon, policy.action_dim)
        means = act(0)
        noise = policy.draw_noise(5, 16, generator=torch.Generator().manual_seed(0))
    each = [policy.act(obs, noise=noise[:, :, n]) for n in range(16)]
    np.testing.assert_allclose(means, np.mean(each, 0), atol=1e-5)
    policy.set_sampling(temperature=0.5)
    policy.save(tmp_path / "policy")
    loaded = DiffusionPolicy.load(tmp_path / "policy")
    assert loaded.config.temperature == 0.5 and np.array_equal(act(3), act(3, loaded))
    with pytest.raises(BurnishError, match=r"temperature=-1\.0: expected at least 0"):
        policy.set_sampling(temperature=-1.0)


def test_a_gaussian_policy_samples_at_its_temperature():
    torch.manual_seed(0)
    policy = GaussianPolicy(GaussianPolicyConfig(log_std_init=-1.0), 3, 2, ["flat"]).eval()
    obs = np.zeros((4000, 1, 3), np.float32)
    mean = policy.act(obs)
    assert np.array_equal(mean, policy.act(obs))
    with policy.sampling(temperature=0.5):
        deviations = policy.act(obs, generator=torch.Generator().manual_seed(0)) - mean
        noise = torch.ones(8, 1)
        np.testing.assert_allclose(policy.act(obs[:1], noise=noise) - mean[:1], 0.5 * math.exp(-1), rtol=1e-4)
    assert deviations.std() == pytest.approx(0.5 * math.exp(-1), rel=0.03)
    squashed = GaussianPolicy(GaussianPolicyConfig(squash=True), 3, 2, ["flat"])
    with pytest.raises(BurnishError, match=r"temperature=1\.0: expected 0"):
        squashed.set_sampling(temperature=1.0)
