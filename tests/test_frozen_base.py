"""docs/frozen_base.md: its commands run, shortened, and what they leave is taken by all that takes a policy."""

from __future__ import annotations

import json
import shlex
from pathlib import Path

import numpy as np
import pytest
import torch
from test_checkpoint_contents import CLONED, DRAWING, RL, SHORT
from test_observations import SPEC, parts

from burnish.commands.cli import main
from burnish.evaluation.evaluate import act
from burnish.networks import CriticConfig, DenoiserConfig
from burnish.networks.encoders.encoder import EncoderConfig
from burnish.networks.squashed import SquashedConfig
from burnish.policies.diffusion import DiffusionPolicy, PolicyConfig
from burnish.policies.edited import EditedPolicy
from burnish.policies.load import load_policy
from burnish.policies.steered import SteeredPolicy

PAGE = (Path(__file__).resolve().parent.parent / "docs" / "frozen_base.md").read_text().splitlines()
COMMANDS = {
    next(word for word in words if word.startswith("stage=")).removeprefix("stage="): words[1:]
    for words in (shlex.split(line) for line in PAGE if line.startswith("    burnish "))
}
MORE = {"dsrl": (), "residual": ("stage.demo_ratio_final=0",), "ogpo": ("stage.states=4", "stage.bc_coef=0")}


@pytest.mark.parametrize("stage", MORE)
def test_the_commands_run_and_their_policies_are_taken_everywhere(stage, tmp_path, capsys):
    assert COMMANDS.keys() == MORE.keys()
    run, again = tmp_path / "run", tmp_path / "again"
    words = [word for word in COMMANDS[stage] if word not in ("task=lift", "policy=RUN")]
    assert main([*words, *RL, *DRAWING, *MORE[stage], f"run_dir={run}"]) == 0
    policy = f"policy={run}"
    assert main(["evaluate", policy, "episodes=2", "backend=sync", "temperature=[1,0]", f"out={tmp_path / 'out'}"]) == 0
    assert "temperature=0" in capsys.readouterr().out
    one = ["episodes=1", "backend=sync", f"out={tmp_path / 'best'}"]
    assert main(["evaluate", policy, *one, "temperature=1", "candidates=3"]) == 0
    assert main(["policy", "set", str(run), "temperature=0.5"]) == 0
    saved = json.loads((run / "checkpoints" / "latest" / "policy.json").read_text())
    assert saved["config"]["temperature"] == 0.5
    frozen = ["stage=frozen", policy, "total_env_steps=4", f"run_dir={tmp_path / 'frozen'}"]
    assert main(["finetune", *SHORT, "n_envs=2", "backend=sync", *frozen]) == 0
    on = [word for word in (*RL, *DRAWING, *MORE[stage]) if not word.startswith("policy=")]
    assert main([*words, *on, policy, f"run_dir={again}"]) == 0  # it goes on with it
    assert json.loads((again / "checkpoints" / "latest" / "policy.json").read_text())["kind"] == saved["kind"]


@pytest.mark.parametrize("kind", [SteeredPolicy, EditedPolicy])
def test_a_base_may_see_pictures(kind, tmp_path):
    """What stands beside it has an encoder of its own, and all of it is saved."""
    torch.manual_seed(0)
    encoder = EncoderConfig(features=4, channels=[8], point_dims=[8])
    base = DiffusionPolicy(PolicyConfig(n_obs_steps=2, encoder=encoder), SPEC, 2, ["a", "b"]).eval()
    base.obs_normalizer.scale.fill_(2.0)
    policy = kind(kind.Config.around(base, actor=SquashedConfig(hidden_dim=32, n_layers=1)), base).eval()
    policy.add_critic(CriticConfig(hidden_dim=32))
    torch.nn.init.normal_(policy.actor.out.weight)
    if kind is SteeredPolicy:
        policy.steers.fill_(True)
    policy.save(tmp_path / "policy")
    again, obs = load_policy(tmp_path / "policy"), SPEC.record(parts(8, 2))
    noise = torch.randn(policy.noise_shape()[0], 8, *policy.noise_shape()[1:])
    assert np.array_equal(again.act(obs, noise=noise), policy.act(obs, noise=noise)) and again.obs_spec == SPEC
    actor = policy.actor
    prepared, darker = (policy.normalized_obs(each) for each in (obs, darkened(obs)))
    given = () if kind is SteeredPolicy else (torch.zeros(8, 4 * 2),)
    assert not torch.equal(actor(prepared, *given)[0], actor(darker, *given)[0])


@pytest.mark.parametrize(("kind", "own"), [(SteeredPolicy, {}), (EditedPolicy, {"per_step": True})])
def test_an_action_depends_on_its_row_alone(kind, own):
    """Bit for bit, whatever the number of environments."""
    torch.manual_seed(0)
    base = DiffusionPolicy(PolicyConfig(denoiser=DenoiserConfig(hidden_dim=64)), 23, 7, ["a"]).eval()
    policy = kind(kind.Config.around(base, actor=SquashedConfig(hidden_dim=64), **own), base).eval()
    policy.add_critic(CriticConfig(hidden_dim=64))
    torch.nn.init.normal_(policy.actor.out.weight)
    if kind is SteeredPolicy:
        policy.steers.fill_(True)
    obs = np.random.default_rng(0).normal(size=(37, 1, 23)).astype(np.float32)

    def actions(part: slice, candidates: int) -> np.ndarray:
        generators = [torch.Generator().manual_seed(seed) for seed in range(37)[part]]
        return act(policy, obs[part], generators, candidates)

    for candidates in (1, 3):
        everyone = actions(slice(None), candidates)
        for n in (1, 3, 16):
            np.testing.assert_array_equal(actions(slice(5, 5 + n), candidates), everyone[5 : 5 + n])


def darkened(obs):
    obs = obs.copy()
    obs["picture"] //= 2
    return obs


def test_what_cannot_be_is_told_in_a_line(tmp_path, capsys):
    run = tmp_path / "run"
    assert main(["finetune", "stage=dsrl", *RL, *DRAWING, f"run_dir={run}"]) == 0
    capsys.readouterr()
    words = ["task=inverted_double_pendulum", f"run_dir={tmp_path / 'none'}"]
    for given, message in (
        (["finetune", "stage=dpmd", f"policy={run}"], "stage=dpmd trains a diffusion or a flow policy, but policy="),
        (["finetune", "stage=residual", f"policy={run}"], "stage=residual trains a diffusion or a flow or a edited"),
        (["scratch", "stage=dsrl"], "stage=dsrl steers a pretrained policy: expected policy=FOLDER"),
        (
            ["finetune", "stage=dsrl", f"policy={CLONED}", "stage.base_steps=3"],
            "sampler_steps=3: expected a div",
        ),
        (["finetune", "stage=dsrl", f"policy={CLONED}", "stage.critic.kind=quantile"], "stage.critic.kind=quantile"),
        (["finetune", "stage=dsrl", f"policy={CLONED}", "offline.steps=5"], "stage.demo_ratio=0 leaves the demonstr"),
        (["evaluate", f"policy={run}", "sampler=ddim"], "sampler=ddim: a steered policy has no sampler"),
        (
            ["evaluate", f"policy={run}", "mean_of=4"],
            "mean_of=4: expected 1, a policy of kind steered acts",
        ),
    ):
        more = [f"out={tmp_path / 'out'}"] if given[0] == "evaluate" else words[1:]
        assert main([*given, words[0], *more]) != 0
        said = capsys.readouterr().err.strip()
        assert message in said and "\n" not in said, said
    assert not (tmp_path / "none").exists()
