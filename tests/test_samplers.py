"""Schedulers of diffusers as samplers, against their own loops and closed forms; scheduler_config.json both ways."""

import json
import math
import subprocess
import sys

import diffusers
import numpy as np
import pytest
import torch

from burnish.commands.cli import main
from burnish.config import WrongValue
from burnish.diffusion import FlowProcess, NoiseProcess, Sampler, StdBounds, betas, flow_times, make_sampler
from burnish.diffusion.scheduler import row_generators
from burnish.diffusion.scheduler_file import SCHEDULER_FILE
from burnish.envs.task import TaskConfig
from burnish.errors import BurnishError
from burnish.evaluation.evaluate import EvaluationConfig, act, evaluate
from burnish.finetune.algorithms.dpmd import DPMD, DPMDConfig
from burnish.finetune.algorithms.dppo import DPPO, DPPOConfig
from burnish.finetune.stage import Setting
from burnish.machine.checksums import CHECKSUMS
from burnish.networks import DenoiserConfig
from burnish.policies.diffusion import DiffusionPolicy, PolicyConfig
from burnish.policies.flow import FlowPolicy, FlowPolicyConfig
from burnish.policies.gaussian import GaussianPolicy, GaussianPolicyConfig
from burnish.policies.load import load_policy

SOLVERS = {  # deterministic; and how many calls of the network 5 steps take
    "DPMSolverMultistepScheduler": 5,
    "UniPCMultistepScheduler": 5,
    "DEISMultistepScheduler": 5,
    "EulerDiscreteScheduler": 5,
    "HeunDiscreteScheduler": 9,
}
DRAWING = ("DDPMScheduler", "LCMScheduler", "EulerAncestralDiscreteScheduler")
HOPPER = TaskConfig(name="hopper", suite="gymnasium", env_id="Hopper-v5", max_episode_steps=40)


def of_diffusers(name, process, steps=5, temperature=1.0):
    return make_sampler(process, f"diffusers:{name}", steps, 0.0, temperature, "sampler_steps")


def cosine(K=20, **kwargs):
    return NoiseProcess(betas("cosine", K), **kwargs)


def eps(x, k):
    """Of some network, smooth in x and k."""
    return 0.8 * torch.tanh(0.5 * x + 0.02 * k) + 0.1 * x


def make_policy(**settings):
    torch.manual_seed(0)
    fixed = {"denoiser": DenoiserConfig(hidden_dim=64), "horizon": 2, "n_action_steps": 2}
    return DiffusionPolicy(PolicyConfig(**(fixed | settings)), 11, 3, ["flat"], "hopper").eval()


# -- numbers -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("name", "calls"), SOLVERS.items())
def test_a_solver_runs_as_in_diffusers_own_loop(name, calls):
    process = cosine(clip_sample=None)
    settings = {"trained_betas": process.betas.numpy(), "prediction_type": "epsilon", "timestep_spacing": "trailing"}
    scheduler = getattr(diffusers, name)(20, **settings)
    scheduler.set_timesteps(5)
    noise = torch.randn(calls + 1, 6, 4, 3, generator=torch.Generator().manual_seed(0))
    x = noise[0] * scheduler.init_noise_sigma
    for t in scheduler.timesteps:
        x = scheduler.step(eps(scheduler.scale_model_input(x, t), t), t, x).prev_sample
    sampler = of_diffusers(name, process)
    assert len(sampler) == calls and sampler.timestep(0) == 19
    ours, chain = sampler.sample(lambda x, i: eps(x, sampler.timestep(i)), noise)
    torch.testing.assert_close(ours, x, atol=2e-3, rtol=1e-4)  # eps -> x0 divides by a signal of 0.002 at the start
    assert chain.x.shape == (6, 0, 4, 3)
    again, _ = sampler.sample(lambda x, i: eps(x, sampler.timestep(i)), noise)
    assert torch.equal(again, ours)


@pytest.mark.parametrize("name", SOLVERS)
def test_a_solver_s_error_falls_with_its_steps(name):
    """Of data N(m, s^2) the best eps is known, and the ODE keeps each noise's quantile: x_0 = m + s z."""
    m, s = 0.3, 0.2
    process = NoiseProcess(betas("linear", 1000, beta_start=1e-4, beta_end=0.02), clip_sample=None)
    z = torch.linspace(-2, 2, 9)[:, None, None]
    errors = []
    for steps in (10, 50, 200):
        sampler = of_diffusers(name, process, steps)

        def best(x, i, sampler=sampler):
            signal, noise = process.level(sampler.timestep(i))
            return noise * (x - signal * m) / (signal**2 * s**2 + noise**2)

        x, _ = sampler.sample(best, torch.cat([z[None], torch.zeros(len(sampler), *z.shape)]))
        errors.append(float((x - (m + s * z)).abs().max()))
    assert errors[0] > 3 * errors[1] > 9 * errors[2]
    assert errors[2] < (0.02 if name == "EulerDiscreteScheduler" else 0.005)  # the others are of the second order


@pytest.mark.parametrize("prediction_type", ["epsilon", "sample", "v_prediction"])
def test_diffusers_ddim_is_ours(prediction_type):
    process = cosine(prediction_type=prediction_type, clip_sample=0.9)
    ours, theirs = Sampler(process, "ddim", 20), of_diffusers("DDIMScheduler", process, 20)
    assert torch.equal(ours.timesteps, theirs.timesteps)
    noise = torch.randn(21, 6, 4, 3)
    found = [sampler.sample(lambda x, i: eps(x, 19 - i), noise)[0] for sampler in (ours, theirs)]
    torch.testing.assert_close(found[0], found[1], atol=1e-5, rtol=1e-5)


def test_diffusers_ddpm_is_ours_with_the_noise_that_it_draws():
    process = cosine()
    ours, theirs = Sampler(process), of_diffusers("DDPMScheduler", process, 20)
    noise = torch.randn(21, 6, 4, 3)
    drawn = [torch.stack([torch.randn(4, 3, generator=g) for _ in range(19)]) for g in row_generators(noise)]
    same = torch.cat([noise[:1], torch.stack(drawn, 1), noise[-1:]])
    x, _ = ours.sample(lambda x, i: eps(x, 19 - i), same)
    torch.testing.assert_close(theirs.sample(lambda x, i: eps(x, 19 - i), noise)[0], x, atol=1e-5, rtol=1e-5)


def test_a_scheduler_that_takes_eps_alone_and_scales_its_state():
    process = cosine(clip_sample=None)
    settings = {"trained_betas": process.betas.numpy(), "timestep_spacing": "trailing"}
    scheduler = diffusers.EulerAncestralDiscreteScheduler(20, **settings)
    scheduler.set_timesteps(5)
    noise = torch.randn(6, 6, 4, 3, generator=torch.Generator().manual_seed(0))
    x, generators = noise[0] * scheduler.init_noise_sigma, row_generators(noise)
    for t in scheduler.timesteps:
        x = scheduler.step(eps(scheduler.scale_model_input(x, t), t), t, x, generator=generators).prev_sample
    sampler = of_diffusers("EulerAncestralDiscreteScheduler", process)
    ours, _ = sampler.sample(lambda x, i: eps(x, sampler.timestep(i)), noise)
    torch.testing.assert_close(ours, x, atol=2e-3, rtol=1e-4)


def test_lcm_is_diffusers_own_with_its_clip():
    process = cosine(clip_sample=0.5)
    settings = {"trained_betas": process.betas.numpy(), "clip_sample": True, "clip_sample_range": 0.5}
    scheduler = diffusers.LCMScheduler(20, original_inference_steps=20, timestep_spacing="trailing", **settings)
    scheduler.set_timesteps(4)
    noise = torch.randn(5, 6, 4, 3)
    x, generators = noise[0], row_generators(noise)
    for t in scheduler.timesteps:
        x = scheduler.step(eps(x, t), t, x, generator=generators).prev_sample
    sampler = of_diffusers("LCMScheduler", process, 4)
    ours, _ = sampler.sample(lambda x, i: eps(x, sampler.timestep(i)), noise)
    torch.testing.assert_close(ours, x, atol=1e-4, rtol=1e-4)


def test_flow_schedulers():
    """Euler's is ours; Heun's is diffusers' own loop, in its clock."""
    process = FlowProcess(flow_times(100), clip_sample=None)
    noise = torch.randn(30, 6, 4, 3)
    euler, theirs = Sampler(process, "euler", 10), of_diffusers("FlowMatchEulerDiscreteScheduler", process, 10)
    assert torch.equal(euler.timesteps, theirs.timesteps)
    found = [one.sample(lambda x, i: eps(x, euler.timestep(i)), noise[:11])[0] for one in (euler, theirs)]
    torch.testing.assert_close(found[0], found[1], atol=1e-5, rtol=1e-5)
    scheduler = diffusers.FlowMatchHeunDiscreteScheduler(100)
    scheduler.set_timesteps(10)
    x = noise[0]
    for t in scheduler.timesteps:
        x = scheduler.step(-eps(x, round(float(t)) - 1), t, x).prev_sample
    heun = of_diffusers("FlowMatchHeunDiscreteScheduler", process, 10)
    ours, _ = heun.sample(lambda x, i: eps(x, heun.timestep(i)), noise[: len(heun) + 1])
    torch.testing.assert_close(ours, x, atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize("name", [*SOLVERS, *DRAWING])
def test_a_sample_is_of_its_own_noise_alone(name):
    """Whatever runs beside it, bit for bit; N candidates of an observation are samples too."""
    sampler = of_diffusers(name, cosine())
    noise = torch.randn(len(sampler) + 1, 32, 4, 3)
    x, _ = sampler.sample(lambda x, i: eps(x, sampler.timestep(i)), noise)
    some, _ = sampler.sample(lambda x, i: eps(x, sampler.timestep(i)), noise[:, 5:9])
    assert torch.equal(some, x[5:9])
    candidates, _ = sampler.sample(lambda x, i: eps(x, sampler.timestep(i)), noise.unflatten(1, (8, 4)))
    assert torch.equal(candidates.flatten(0, 1), x)
    other = torch.cat([noise[:1], torch.randn(len(sampler), 32, 4, 3)])
    changed, _ = sampler.sample(lambda x, i: eps(x, sampler.timestep(i)), other)
    assert torch.equal(changed, x) == (name in SOLVERS)  # deterministic: given the first noise


def test_the_bound_of_the_clean_action_holds_for_all():
    for name in (*SOLVERS, "LCMScheduler"):
        found = {}
        for clip in (0.5, None):
            sampler = of_diffusers(name, cosine(clip_sample=clip))
            noise = torch.randn(len(sampler) + 1, 8, 4, 3, generator=torch.Generator().manual_seed(0))
            found[clip] = float(sampler.sample(lambda x, i: -x, noise)[0].abs().max())
        assert found[0.5] < 1 and found[None] > 10, name  # solvers of the second order extrapolate a little


def test_temperature():
    sampler = of_diffusers("DPMSolverMultistepScheduler", cosine(), temperature=0.5)
    one = of_diffusers("DPMSolverMultistepScheduler", cosine())
    noise = torch.randn(6, 8, 4, 3)
    found = [each.sample(eps, n)[0] for each, n in ((sampler, noise), (one, 0.5 * noise))]
    assert torch.equal(*found)
    with pytest.raises(BurnishError, match=r"temperature=0.5: expected 1 with sampler=diffusers:LCM.*draws noise"):
        of_diffusers("LCMScheduler", cosine(), temperature=0.5)


# -- what is refused ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "steps", "message"),
    [
        ("DPMSolverMultistep", 5, "has no such scheduler; did you mean DPMSolverMultistepScheduler?"),
        ("DPMSolverMultistepScheduler", 21, "sampler_steps=21: expected 1 to denoising_steps=20"),
        ("KDPM2DiscreteScheduler", 5, r"asks the network at timestep 18.29, which knows whole ones of 0 to 19"),
        ("DDIMInverseScheduler", 5, "runs from the action to noise"),
        ("FlowMatchEulerDiscreteScheduler", 5, "it is made for other processes; expected one with trained_betas"),
        ("RePaintScheduler", 5, "does not run with sampler_steps=5 here"),
    ],
)
def test_schedulers_that_cannot_be(name, steps, message):
    with pytest.raises(BurnishError, match=message):
        of_diffusers(name, cosine(), steps)


def test_a_flow_takes_schedulers_of_flows_at_its_times():
    process = FlowProcess(flow_times(100))
    with pytest.raises(BurnishError, match=r"expected a scheduler of flow matching \(FlowMatch...\)"):
        of_diffusers("UniPCMultistepScheduler", process)
    with pytest.raises(BurnishError, match=r"sampler_steps=5: .*FlowMatchHeun.* at timestep 74.25"):
        of_diffusers("FlowMatchHeunDiscreteScheduler", process)


def test_there_is_no_likelihood():
    sampler = of_diffusers("DDIMScheduler", cosine())
    noise, said = torch.randn(6, 2, 4, 3), "sampler=diffusers:DDIMScheduler is for evaluation: its steps have no likeli"
    for ask in (
        lambda: sampler.sample(lambda x, i: x, noise, keep=2),
        lambda: sampler.sample(lambda x, i: x, noise, bounds=StdBounds(0.1)),
        lambda: sampler.transition(noise[0], noise[0], 0),
        lambda: sampler.mean(noise[0], noise[0], 0),
        lambda: sampler.bounded_std(StdBounds()),
        lambda: sampler.widen(torch.zeros(20)),
    ):
        with pytest.raises(BurnishError, match=said):
            ask()


def test_trainings_that_need_a_likelihood_refuse_it():
    policy = make_policy(sampler="diffusers:DDIMScheduler")
    with pytest.raises(BurnishError, match=r"stage.sampler=inherit: .*diffusers:DDIMScheduler, whose steps have no"):
        DPPO(policy, DPPOConfig(ft_denoising_steps=2), Setting(HOPPER, 2, 0))
    with pytest.raises(BurnishError, match=r"stage.sampler=inherit: .*diffusers:DDIMScheduler, is for evaluation"):
        config = DPMDConfig(sampler="inherit", demos=None, demo_ratio=0.0)
        DPMD(make_policy(sampler="diffusers:DDIMScheduler"), config, Setting(HOPPER, 2, 0))
    stage = DPPO(policy, DPPOConfig(sampler="ddim", ddim_steps=5, ft_denoising_steps=2), Setting(HOPPER, 2, 0))
    assert len(stage.policy.sampler) == 5 and stage.policy.sampler.gaussian


# -- policies and evaluations ------------------------------------------------------------------------------------------


def test_a_policy_acts_by_a_scheduler_row_by_row():
    policy = make_policy()
    obs = np.random.default_rng(0).normal(size=(10, 1, 11)).astype(np.float32)
    for name in ("DPMSolverMultistepScheduler", "LCMScheduler"):
        with policy.sampling(sampler=f"diffusers:{name}", sampler_steps=4):
            assert policy.noise_shape() == (5, 2, 3)
            together = act(policy, obs, [torch.Generator().manual_seed(i) for i in range(10)])
            alone = act(policy, obs[7:8], [torch.Generator().manual_seed(7)])
            assert np.array_equal(together[7:8], alone)
    assert policy.config.sampler == "ddpm" and len(policy.sampler) == 20


def test_another_sampler_of_a_fine_tuned_policy_keeps_who_runs_where(tmp_path, capsys):
    policy = make_policy()
    policy.start_finetuning(10)
    calls = []
    for name, network in (("base", policy.denoiser), ("finetuned", policy.finetuned)):
        network.register_forward_pre_hook(lambda _, inputs, name=name: calls.append((name, int(inputs[1]))))
    with policy.sampling(sampler="diffusers:UniPCMultistepScheduler", sampler_steps=5):
        policy.act(np.zeros((4, 1, 11), np.float32))
    assert calls == [("base", 19), ("base", 15), ("base", 11), ("finetuned", 7), ("finetuned", 3)]
    policy.save(tmp_path / "policy")
    assert main(["policy", "set", str(tmp_path / "policy"), "sampler=ddim"]) == 2
    assert "a fine-tuned policy keeps its sampler" in capsys.readouterr().err


def test_the_result_does_not_depend_on_how_many_run_side_by_side():
    policy = make_policy()
    how = {"episodes": 4, "backend": "sync", "sampler": "diffusers:EulerAncestralDiscreteScheduler", "sampler_steps": 5}
    found = [evaluate(policy, HOPPER, EvaluationConfig(n_envs=n, **how)) for n in (1, 4)]
    assert np.array_equal(found[0].returns, found[1].returns)
    assert (found[0].sampler, found[0].sampler_steps) == ("diffusers:EulerAncestralDiscreteScheduler", 5)


def test_evaluate_and_policy_set_take_a_sampler(tmp_path, capsys):
    folder = tmp_path / "policy"
    make_policy().save(folder)
    words = ["evaluate", "task=hopper", f"policy={folder}", "episodes=2", "n_envs=2", "backend=sync"]
    words += ["task.max_episode_steps=20", f"out={tmp_path / 'out'}"]
    samplers = "sampler=[ddim,diffusers:DPMSolverMultistepScheduler]"
    assert main([*words, samplers, "sampler_steps=[2,4]"]) == 0
    printed = capsys.readouterr().out
    assert "temperature=1, DPMSolverMultistepScheduler, 4 steps" in printed and "sampler_steps=" in printed
    name = "evaluation-temperature1-mean_of1-samplerDPMSolverMultistepScheduler-sampler_steps4.json"
    one = json.loads((tmp_path / "out" / name).read_text())
    assert (one["sampler"], one["sampler_steps"]) == ("diffusers:DPMSolverMultistepScheduler", 4)
    settings = ["sampler=diffusers:DPMSolverMultistepScheduler", "sampler_steps=4"]
    assert main(["policy", "set", str(folder), *settings]) == 0
    assert "sampler from ddpm to diffusers:DPMSolver" in capsys.readouterr().out
    assert main(words) == 0
    alone = json.loads((tmp_path / "out" / "evaluation.json").read_text())
    assert alone["return"] == one["return"] and alone["sampler_steps"] == 4
    assert json.loads((folder / SCHEDULER_FILE).read_text())["_class_name"] == "DPMSolverMultistepScheduler"
    before = (folder / "policy.json").read_bytes()
    assert main(["policy", "set", str(folder), "sampler=diffusers:Nothing"]) == 2
    assert "has no such scheduler" in capsys.readouterr().err
    assert main([*words, "sampler=ddpm", "sampler_steps=4"]) == 2
    assert "sampler_steps=4: expected null with sampler=ddpm" in capsys.readouterr().err
    assert (folder / "policy.json").read_bytes() == before


def test_what_has_no_sampler_and_what_trainings_evaluate_with():
    with pytest.raises(WrongValue, match="sampler=ddim: a gaussian policy has no sampler"):
        GaussianPolicy(GaussianPolicyConfig(), 11, 3, ["flat"]).set_sampling(sampler="ddim")
    for name, value in (("sampler", "ddim"), ("sampler_steps", 5)):
        with pytest.raises(BurnishError, match=f"evaluation.{name}={value}: expected null; trainings evaluate as"):
            EvaluationConfig(**{name: value}).require_single()


# -- scheduler_config.json ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize("sampler", ["ddpm", "ddim"])
@pytest.mark.parametrize(
    "settings",
    [{}, {"schedule": "vp", "prediction_type": "v_prediction"}, {"clip_sample": None}, {"clip_sample": 0.8}],
)
def test_diffusers_makes_of_a_policy_s_folder_the_scheduler_that_samples_alike(tmp_path, settings, sampler):
    policy = make_policy(sampler=sampler, **settings)
    policy.save(tmp_path / "policy")
    cls = {"ddpm": diffusers.DDPMScheduler, "ddim": diffusers.DDIMScheduler}[sampler]
    content = json.loads((tmp_path / "policy" / SCHEDULER_FILE).read_text())
    known = {*cls().config, "_class_name", "_diffusers_version"}
    assert set(content) <= known and content["_class_name"] == cls.__name__
    scheduler = cls.from_pretrained(str(tmp_path / "policy"))
    assert torch.equal(scheduler.betas, policy.process.betas.float())
    scheduler.set_timesteps(len(policy.sampler))
    assert scheduler.timesteps.tolist() == policy.sampler.timesteps.tolist()
    x = noise = torch.randn(6, 2, 3)
    given = {"use_clipped_model_output": True} if sampler == "ddim" else {"generator": torch.Generator().manual_seed(0)}
    for t in scheduler.timesteps:
        x = scheduler.step(eps(x, t), t, x, **given).prev_sample
    generator = torch.Generator().manual_seed(0)
    drawn = [torch.randn(6, 2, 3, generator=generator) for _ in range(len(policy.sampler))]
    ours, _ = policy.sampler.sample(lambda x, i: eps(x, policy.sampler.timestep(i)), torch.stack([noise, *drawn]))
    torch.testing.assert_close(ours, x, atol=1e-4, rtol=1e-4)


def test_a_flow_s_folder_and_that_of_a_policy_with_a_scheduler(tmp_path):
    config = FlowPolicyConfig(DenoiserConfig(hidden_dim=32), horizon=2, n_action_steps=2, clip_sample=None)
    flow = FlowPolicy(config, 11, 3, ["flat"]).eval()
    flow.save(tmp_path / "flow")
    scheduler = diffusers.FlowMatchEulerDiscreteScheduler.from_pretrained(str(tmp_path / "flow"))
    scheduler.set_timesteps(10, sigmas=[1 - j / 10 for j in range(10)])
    noise = torch.randn(11, 4, 2, 3)
    x, obs = noise[0], torch.zeros(4, 11)
    for t in scheduler.timesteps:
        k = torch.tensor(round(float(t)) - 1)
        with torch.no_grad():
            x = scheduler.step(-flow.denoiser(x, k, flow.denoiser.encode(obs)), t, x).prev_sample
    with torch.no_grad():
        torch.testing.assert_close(flow.sample(obs, noise)[0], x, atol=1e-5, rtol=1e-5)
    make_policy(sampler="diffusers:UniPCMultistepScheduler").save(tmp_path / "unipc")
    unipc = diffusers.UniPCMultistepScheduler.from_pretrained(str(tmp_path / "unipc"))
    assert (unipc.config.prediction_type, unipc.config.timestep_spacing) == ("epsilon", "trailing")
    assert load_policy(tmp_path / "unipc").sampler.kind == "diffusers:UniPCMultistepScheduler"


def test_a_folder_without_the_file_is_read(tmp_path):
    policy = make_policy()
    policy.save(tmp_path / "policy")
    for name in (SCHEDULER_FILE, CHECKSUMS):
        (tmp_path / "policy" / name).unlink()
    description = json.loads((tmp_path / "policy" / "policy.json").read_text())
    for name in ("sampler_steps", "trained_betas"):
        del description["config"][name]
    (tmp_path / "policy" / "policy.json").write_text(json.dumps(description))
    assert load_policy(tmp_path / "policy").config == policy.config


def scheduler_file(folder, cls=diffusers.DDPMScheduler, **settings):
    fixed = {"num_train_timesteps": 50, "beta_schedule": "squaredcos_cap_v2", "clip_sample": True}
    cls(**({name: value for name, value in fixed.items() if name in cls().config} | settings)).save_config(str(folder))
    return str(folder / SCHEDULER_FILE)


def test_a_scheduler_s_file_is_a_policy_s_schedule(tmp_path):
    path = scheduler_file(tmp_path, beta_schedule="scaled_linear", beta_start=0.001, beta_end=0.3)
    policy = make_policy(schedule=path, denoising_steps=50)
    assert torch.equal(policy.process.betas.float(), torch.linspace(0.001**0.5, 0.3**0.5, 50) ** 2)
    policy.save(tmp_path / "policy")
    (tmp_path / SCHEDULER_FILE).unlink()  # the policy's folder stands alone
    loaded = load_policy(tmp_path / "policy")
    assert torch.equal(loaded.process.betas, policy.process.betas) and loaded.config == policy.config
    written = diffusers.DDPMScheduler.from_pretrained(str(tmp_path / "policy"))
    assert torch.equal(written.betas, policy.process.betas.float())


@pytest.mark.parametrize("settings", [{}, {"sampler": "ddim", "timestep_spacing": "trailing"}])
def test_the_file_that_a_policy_wrote_gives_its_schedule_back(tmp_path, settings):
    policy = make_policy(schedule="sigmoid", schedule_scale=0.7, **settings)
    policy.save(tmp_path / "policy")
    again = make_policy(schedule=str(tmp_path / "policy" / SCHEDULER_FILE), **settings)
    assert torch.equal(again.process.betas.float(), policy.process.betas.float())


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"num_train_timesteps": 100}, r"one with denoising_steps=50: expected policy.denoising_steps=100$"),
        ({"prediction_type": "sample"}, "expected policy.prediction_type=sample"),
        ({"clip_sample": False}, "clip_sample=1.0: expected policy.clip_sample=null"),
        ({"clip_sample_range": 2.0}, "expected policy.clip_sample=2.0"),
        ({"thresholding": True}, "thresholding=True, which Burnish's samplers do not do; expected False"),
        ({"rescale_betas_zero_snr": True}, "rescale_betas_zero_snr=True, which"),
        ({"variance_type": "fixed_large"}, "variance_type=fixed_large, which .* expected fixed_small"),
        ({"cls": diffusers.DDIMScheduler, "timestep_spacing": "trailing"}, "expected policy.timestep_spacing=trailing"),
        ({"cls": diffusers.DDIMScheduler, "set_alpha_to_one": False}, "set_alpha_to_one=False, which"),
        ({"cls": diffusers.FlowMatchEulerDiscreteScheduler}, "is a flow's .* expected policy=flow"),
        ({"cls": diffusers.CMStochasticIterativeScheduler}, "a CMStochasticIterativeScheduler has no betas"),
    ],
)
def test_files_that_a_policy_cannot_follow(tmp_path, settings, message):
    path = scheduler_file(tmp_path, **settings)
    with pytest.raises(WrongValue, match=message) as raised:
        make_policy(schedule=path, denoising_steps=50)
    assert str(raised.value).startswith(f"schedule={path}") and "\n" not in str(raised.value)


@pytest.mark.parametrize(
    ("text", "message"),
    [(None, "No such file"), ("{", "is no JSON"), ("[1]", "no _class_name"), ('{"_class_name": "X"}', "no such sched")],
)
def test_files_that_are_no_scheduler_s(tmp_path, text, message):
    if text is not None:
        (tmp_path / "a.json").write_text(text)
    with pytest.raises(WrongValue, match=message):
        make_policy(schedule=str(tmp_path / "a.json"))


def test_variances_given_as_numbers():
    assert math.isclose(float(make_policy(schedule="trained_betas", trained_betas=[0.1] * 20).process.betas[3]), 0.1)
    for settings, message in (
        ({"trained_betas": [0.1] * 20}, "expected trained_betas with schedule=trained_betas alone"),
        ({"schedule": "trained_betas"}, "expected trained_betas with schedule=trained_betas alone"),
        ({"schedule": "trained_betas", "trained_betas": [0.1]}, "1 of them, expected denoising_steps=20"),
        ({"schedule": "trained_betas", "trained_betas": [1.0] * 20}, "more than 0 and less than 1"),
    ):
        with pytest.raises(WrongValue, match=message):
            make_policy(**settings)


def test_what_does_not_use_diffusers_does_not_import_it(tmp_path):
    make_policy().save(tmp_path / "policy")
    code = (
        "import sys, burnish, numpy as np; from burnish.policies.load import load_policy;"
        "policy = load_policy(sys.argv[1]); policy.act(np.zeros((1, 1, 11), np.float32)); policy.save(sys.argv[1]);"
        "assert 'diffusers' not in sys.modules;"
        "policy.set_sampling(sampler='diffusers:DDIMScheduler'); assert 'diffusers' in sys.modules"
    )
    subprocess.run([sys.executable, "-c", code, str(tmp_path / "policy")], check=True)
