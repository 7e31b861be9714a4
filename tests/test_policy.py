"""The policy: normalizer, networks, chain over two denoisers, saving and loading."""

import copy
import json
import math

import numpy as np
import pytest
import torch

from burnish import DiffusionPolicy
from burnish.commands.policy import set_policy
from burnish.diffusion import Sampler
from burnish.errors import BurnishError
from burnish.machine.checksums import CHECKSUMS
from burnish.networks import CriticConfig, DenoiserConfig, build_denoiser
from burnish.networks.compiled import mlp as compiled_mlp
from burnish.policies.diffusion import PolicyConfig
from burnish.policies.gaussian import GaussianPolicy, GaussianPolicyConfig
from burnish.policies.normalizer import Normalizer

SMALL = DenoiserConfig(hidden_dim=32, n_layers=2)


def make_policy(**kwargs):
    torch.manual_seed(0)
    config = PolicyConfig(denoiser=kwargs.pop("denoiser", SMALL), **kwargs)
    return DiffusionPolicy(config, obs_spec=5, action_dim=3, obs_keys=["flat"], task="test").eval()


def test_normalizer_min_max_and_constant_dimension():
    data = torch.tensor([[0.0, 5.0, -2.0], [4.0, 5.0, 2.0], [1.0, 5.0, 0.0]])
    normalizer = Normalizer(3)
    normalizer.fit(data, "min_max")
    expected = torch.tensor([[-1.0, 0.0, -1.0], [1.0, 0.0, 1.0], [-0.5, 0.0, 0.0]])
    torch.testing.assert_close(normalizer.normalize(data), expected)
    torch.testing.assert_close(normalizer.unnormalize(expected), data)
    assert float(normalizer.normalize(torch.tensor([0.0, 5.5, 0.0]))[1]) == pytest.approx(0.5)


@pytest.mark.parametrize(("spread", "scale"), [(0.9e-4, 1.0), (1.1e-4, 0.55e-4)])
def test_what_varies_less_than_a_ten_thousandth_is_constant(spread, scale):
    normalizer = Normalizer(1)
    normalizer.fit(torch.tensor([[0.0], [spread]]), "min_max")
    assert float(normalizer.scale) == pytest.approx(scale)


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
    network = build_denoiser(config, features=6, horizon=horizon, action_dim=3, denoising_steps=10)
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
    network = build_denoiser(config, features=6, horizon=4, action_dim=3, denoising_steps=10)
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


def test_from_scratch_the_whole_chain_is_trained():
    with pytest.raises(BurnishError, match=r"ft_denoising_steps=19 \(K'\): from scratch expected 20, all of"):
        make_policy().start_finetuning(19, from_scratch=True)
    policy = make_policy()
    policy.start_finetuning(from_scratch=True)
    assert policy.ft_denoising_steps == 20


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
    (tmp_path / "policy" / CHECKSUMS).unlink()  # which would tell more than these do
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
    abar = policy.process.power[k].float()[:, None, None]
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


# -- one that acts with candidates, goes on with other noise, or comes back from its folder ----------------------------


@pytest.mark.parametrize(
    ("sampler", "ft_denoising_steps", "timesteps"),
    [("ddpm", 0, 0), ("ddpm", 4, 4), ("ddpm", 20, 20), ("ddim", 2, 5), ("ddim", 5, 20)],
)
def test_the_finetuned_denoiser_runs_below_a_timestep(monkeypatch, sampler, ft_denoising_steps, timesteps):
    """DDIM goes through 16, 12, 8, 4, 0: its last two are 4 and 0. Other samplers follow the same timestep."""
    monkeypatch.setattr(compiled_mlp, "_library", lambda: None)
    policy = make_policy(sampler=sampler, ddim_steps=5)
    if ft_denoising_steps:
        policy.start_finetuning(ft_denoising_steps)
    assert policy.finetuned_timesteps == timesteps
    other = Sampler(policy.process, "ddim", steps=10, eta=1.0)  # 18, 16, .. 0
    calls, given = [], copy.deepcopy(policy.denoiser)
    for name, network in (("base", policy.denoiser), ("finetuned", policy.finetuned), ("given", given)):
        if network is not None:
            network.register_forward_pre_hook(lambda _, inputs, name=name: calls.append((name, int(inputs[1]))))
    for finetuned, name in ((None, "finetuned"), (given, "given")):
        calls.clear()
        policy.sample(torch.zeros(2, 5), policy.draw_noise(2, sampler=other), sampler=other, finetuned=finetuned)
        assert calls == [("base" if k >= timesteps else name, k) for k in range(18, -2, -2)]


def test_the_best_candidate_is_executed():
    """By the least of the critic's members, on the executed part within its bounds."""
    policy = make_policy(n_action_steps=2)
    policy.add_critic(CriticConfig(n_critics=3, hidden_dim=16))
    obs, noise = torch.randn(6, 1, 5), torch.randn(21, 6, 4, 4, 3)
    x, _ = policy.sample(policy.normalized_obs(obs), noise)
    each = policy.critic(obs.flatten(1), x[:, :, :2].clamp(-1, 1).flatten(2))
    assert each.shape == (3, 6, 4) and len(set(each.argmin(0).flatten().tolist())) > 1
    least = each.min(0).values
    torch.testing.assert_close(policy.values(obs.flatten(1), x), least)
    best = torch.stack([row[n] for row, n in zip(x, least.argmax(1))])[:, :2]
    torch.testing.assert_close(policy.act(obs, noise=noise, candidates=4), best)
    assert least.argmax(1).any()
    torch.testing.assert_close(
        policy.values(obs.flatten(1), 3 * x), policy.values(obs.flatten(1), (3 * x).clamp(-1, 1))
    )
    other = copy.deepcopy(policy.critic)
    torch.nn.init.constant_(other.layers[-1].bias, 7.0)
    assert float((policy.values(obs.flatten(1), x, other) - least).abs().min()) > 1


def test_bounds_of_actions():
    """Those of what is sampled; without them, those that environments clip raw actions to."""
    x = torch.tensor([[-3.0, 0.9, 3.0]])
    assert make_policy(clip_sample=0.5).within_bounds(x).tolist() == [[-0.5, 0.5, 0.5]]
    policy = make_policy(clip_sample=None)
    policy.action_normalizer.offset.fill_(0.5)
    policy.action_normalizer.scale.fill_(0.25)
    assert policy.within_bounds(x).tolist() == [[-3.0, pytest.approx(0.9), 2.0]]  # raw: -0.25, 0.725, 1


def test_loss_and_actions_are_of_normalised_numbers():
    policy = make_policy(n_obs_steps=2, prediction_type="sample")
    policy.obs_normalizer.fit(torch.randn(20, 5) * 3 + 1, "mean_std")
    policy.action_normalizer.fit(torch.rand(20, 3) * 0.6 + 0.3, "min_max")
    obs, actions = torch.randn(6, 2, 5), torch.rand(6, 4, 3)
    x0 = policy.action_normalizer.normalize(actions)
    normalized = ((obs - policy.obs_normalizer.offset) / policy.obs_normalizer.scale).flatten(1)
    output, target = policy.denoise_noised(policy.denoiser, normalized, x0, torch.Generator().manual_seed(1))
    torch.testing.assert_close(target, x0)
    loss = policy.loss(obs, actions, torch.Generator().manual_seed(1))
    torch.testing.assert_close(loss, (output - x0).square().mean())


@pytest.mark.parametrize("prediction_type", ["epsilon", "v_prediction"])
def test_every_timestep_is_noised_to_with_its_own_noise(prediction_type):
    policy = make_policy(prediction_type=prediction_type)
    x0, given = torch.randn(400, 2, 4, 3), []
    network = policy.denoiser
    network.register_forward_pre_hook(lambda _, inputs: given.append(inputs))
    for n_timesteps in (0, 7):
        generator = torch.Generator().manual_seed(0)
        _, target = policy.denoise_noised(network, torch.zeros(400, 5), x0, generator, n_timesteps)
        x, k, _ = given.pop()
        assert k.shape == (400, 2) and set(k.flatten().tolist()) == set(range(n_timesteps or 20))
        abar = policy.process.power[k].float()[:, :, None, None]
        eps = (x - abar.sqrt() * x0) / (1 - abar).sqrt()
        assert abs(eps.mean()) < 0.02 and abs(eps.std() - 1) < 0.02
        expected = eps if prediction_type == "epsilon" else abar.sqrt() * eps - (1 - abar).sqrt() * x0
        torch.testing.assert_close(target, expected, rtol=1e-4, atol=1e-4)


def test_another_sampler_from_now_on():
    policy = make_policy(sampler="ddim", ddim_steps=10, eta=0.5)
    torch.testing.assert_close(policy.sampler.std, 0.5 * Sampler(policy.process, "ddim", 10, eta=1.0).std)
    policy.set_sampler("ddim", 4)
    assert len(policy.sampler) == 4 and not policy.sampler.std.any()  # eta = 0
    assert (policy.config.sampler, policy.config.ddim_steps, policy.config.eta) == ("ddim", 4, 0.0)
    assert policy.noise_shape() == (5, 4, 3) and policy.noise_shape(3) == (5, 3, 4, 3)
    policy.start_finetuning(2)
    with pytest.raises(BurnishError, match="the sampler of a fine-tuned policy cannot be changed"):
        policy.set_sampler("ddpm", 4)


def test_a_config_describes_its_noise_process():
    betas = {"schedule": "linear", "schedule_scale": 0.5, "beta_start": 0.01, "beta_end": 0.4}
    process = PolicyConfig(SMALL, **betas, clip_sample=0.7, prediction_type="sample").noise_process()
    torch.testing.assert_close(process.betas.float(), 0.5 * torch.linspace(0.01, 0.4, 20))
    assert (process.clip_sample, process.prediction_type) == (0.7, "sample")


def test_a_critic_comes_back_from_the_folder(tmp_path):
    policy = make_policy(n_obs_steps=2, n_action_steps=3)
    policy.add_critic(CriticConfig(n_critics=3, hidden_dim=16, n_layers=2))
    policy.save(tmp_path / "policy")
    loaded = DiffusionPolicy.load(tmp_path / "policy")
    assert loaded.critic_config == policy.critic_config
    obs, noise = np.ones((3, 2, 5), np.float32), torch.randn(21, 3, 4, 4, 3)
    np.testing.assert_array_equal(
        loaded.act(obs, noise=noise, candidates=4), policy.act(obs, noise=noise, candidates=4)
    )


@pytest.mark.parametrize(("kept", "timesteps"), [(True, [19]), (False, [0])])
def test_a_policy_of_before_timestep_spacing_keeps_the_old_one(tmp_path, kept, timesteps):
    make_policy(denoising_steps=20, sampler="ddim", ddim_steps=1).save(tmp_path / "policy")
    description = json.loads((tmp_path / "policy" / "policy.json").read_text())
    assert description["config"]["timestep_spacing"] is None
    if not kept:
        del description["config"]["timestep_spacing"]
        (tmp_path / "policy" / "policy.json").write_text(json.dumps(description))
        (tmp_path / "policy" / CHECKSUMS).unlink()
    assert DiffusionPolicy.load(tmp_path / "policy").sampler.timesteps.tolist() == timesteps
    set_policy(str(tmp_path / "policy"), ["temperature=0.5"])  # and so do those that it is written to
    assert DiffusionPolicy.load(tmp_path / "policy").sampler.timesteps.tolist() == timesteps
    set_policy(str(tmp_path / "policy"), ["timestep_spacing=trailing"])
    assert DiffusionPolicy.load(tmp_path / "policy").sampler.timesteps.tolist() == [19]
