"""Behaviour cloning against a plain loop, and the course of a pretraining with known evaluations."""

from __future__ import annotations

import contextlib
import copy
import json
import math

import numpy as np
import pytest
import torch
from bandit import tensors

from burnish.datasets.episodes import Demonstrations, Episode
from burnish.datasets.windows import Windows
from burnish.envs.task import TaskConfig
from burnish.evaluation.evaluate import Evaluation
from burnish.evaluation.temperatures import TrainingEvaluationConfig
from burnish.networks import DenoiserConfig
from burnish.policies.diffusion import DiffusionPolicy, PolicyConfig
from burnish.pretrain import behaviour_cloning
from burnish.pretrain.behaviour_cloning import BehaviourCloning, PretrainConfig, TrainConfig, pretrain
from burnish.runs.metrics import read_metrics

TASK = TaskConfig("counter", "gymnasium", "Counter", 5)
POLICY = PolicyConfig(DenoiserConfig(hidden_dim=16, n_layers=2), n_obs_steps=2, horizon=3, n_action_steps=2)
TRAIN = {"epochs": 4, "batch_size": 8, "learning_rate": 3e-3, "weight_decay": 0.1, "warmup_steps": 4, "ema_decay": 0.2}
TRAIN |= {"max_grad_norm": 0.2}


def episodes(*lengths: int) -> list[Episode]:
    """Of random numbers; episode i's observations lie around 10 i."""
    rng = np.random.default_rng(0)
    return [
        Episode(
            f"demo_{i}",
            {"flat": rng.normal(10 * i, 1, (n, 3)).astype(np.float32)},
            rng.uniform(-1, 1, (n, 2)).astype(np.float32),
            np.ones(n, np.float32),
            np.zeros(n, bool),
        )
        for i, n in enumerate(lengths)
    ]


@pytest.fixture(autouse=True)
def every_epoch_is_reported(monkeypatch):
    monkeypatch.setattr(behaviour_cloning, "LEAST_REPORTED", 1)


def make_trainer(seed: int = 0, weights: int = 0, **train) -> BehaviourCloning:
    """23 windows in 3 minibatches an epoch, 7 for validation."""
    torch.manual_seed(weights)
    policy = DiffusionPolicy(POLICY, 3, 2, ["flat"])
    everything = episodes(11, 12, 7)
    windows, validation = (Windows(part, ["flat"], 2, 3) for part in (everything[:2], everything[2:]))
    policy.obs_normalizer.fit(windows.obs, "min_max")
    config = PretrainConfig(task=TASK, policy=POLICY, train=TrainConfig(**(TRAIN | train)), run_dir="", seed=seed)
    return BehaviourCloning(config, policy, windows, validation)


def watch_batches(trainer: BehaviourCloning, monkeypatch: pytest.MonkeyPatch) -> list[torch.Tensor]:
    seen, batch = [], trainer.windows.batch
    monkeypatch.setattr(trainer.windows, "batch", lambda indices: seen.append(indices) or batch(indices))
    return seen


def parameters(module: torch.nn.Module) -> torch.Tensor:
    return torch.cat([p.detach().flatten() for p in module.parameters()])


def test_training_is_that_of_a_plain_loop(monkeypatch):
    """AdamW, its rate, the clipped gradient, the average, and the metrics of each epoch."""
    trainer = make_trainer(seed=2)
    batches = watch_batches(trainer, monkeypatch)
    policy, mean = copy.deepcopy(trainer.policy), parameters(trainer.policy)
    moments = [(p, torch.zeros_like(p), torch.zeros_like(p)) for p in policy.parameters()]
    generator, step = torch.Generator().manual_seed(2), 0
    assert trainer.total_steps == 12
    for epoch in range(1, 5):
        losses = []
        for _ in range(3):
            trainer.update()
            rate = (step + 1) / 4 if step < 4 else 0.1 + 0.45 * (1 + math.cos(math.pi * (step - 4) / 8))
            step += 1
            loss = policy.loss(*trainer.windows.batch(batches[-1]), generator)
            batches.pop()
            losses.append(loss.item())
            gradients = torch.autograd.grad(loss, list(policy.parameters()))
            norm = math.sqrt(sum(float(g.square().sum()) for g in gradients))
            assert norm > 0.2
            with torch.no_grad():
                for (p, m, v), gradient in zip(moments, gradients):
                    clipped = gradient * 0.2 / (norm + 1e-6)
                    m.lerp_(clipped, 0.1)
                    v.lerp_(clipped**2, 0.001)
                    p.mul_(1 - 0.1 * 3e-3 * rate)
                    p.sub_(3e-3 * rate * m / (1 - 0.9**step) / ((v / (1 - 0.999**step)).sqrt() + 1e-8))
            decay = min(0.2, step / (9 + step))
            mean = decay * mean + (1 - decay) * parameters(policy)
            torch.testing.assert_close(parameters(trainer.policy), parameters(policy), rtol=1e-3, atol=1e-5)
            torch.testing.assert_close(parameters(trainer.ema.module), mean, rtol=1e-3, atol=1e-5)
        metrics = trainer.metrics()
        assert sorted(torch.cat(batches[-3:]).tolist()) == list(range(23))
        following = step / 4 + 0.25 if step < 4 else 0.1 + 0.45 * (1 + math.cos(math.pi * (step - 4) / 8))
        expected = {"epoch": epoch, "loss": np.mean(losses), "learning_rate": 3e-3 * following}
        # of the averaged weights, whose noise is always the same
        noise = torch.Generator().manual_seed(0)
        with torch.no_grad():
            validation = trainer.ema.module.loss(*trainer.validation.batch(torch.arange(7)), noise)
        assert metrics == pytest.approx(expected | {"validation_loss": float(validation)}, rel=1e-4)
        assert abs(trainer.policy.loss(*trainer.validation.batch(torch.arange(7)), noise).item() - validation) > 1e-4


def test_validation_weighs_every_window_alike(monkeypatch):
    trainer = make_trainer()
    monkeypatch.setattr(trainer.ema.module, "loss", lambda obs, actions, generator: torch.tensor(float(len(obs))))
    trainer.validation = Windows(episodes(5000), ["flat"], 2, 3)
    assert trainer.validation_loss() == pytest.approx((4096**2 + 904**2) / 5000)


def test_every_epoch_has_an_order_of_its_own(monkeypatch):
    """By seed and epoch alone."""
    orders = []
    for seed in (0, 0, 1):
        trainer = make_trainer(seed=seed)
        batches = watch_batches(trainer, monkeypatch)
        for _ in range(6):
            trainer.update()
        assert [len(batch) for batch in batches] == [8, 8, 7] * 2
        orders.append([torch.cat(batches[:3]).tolist(), torch.cat(batches[3:]).tolist()])
    assert orders[0] == orders[1]
    different = [order for pair in orders[1:] for order in pair]
    assert len({tuple(order) for order in different}) == 4


@pytest.mark.parametrize("steps", [2, 3])
def test_a_restored_training_goes_on_bitwise(steps):
    """In the middle of an epoch and at its end; the restored one had other weights and another generator."""
    trainer = make_trainer()
    for _ in range(steps):
        trainer.update()
    again = make_trainer(weights=1)
    again.generator.manual_seed(7)
    again.load_state_dict(copy.deepcopy(trainer.state_dict()))
    for _ in range(6 - steps):
        for one in (trainer, again):
            one.update()
        assert torch.equal(trainer.loss_sum, again.loss_sum)
    ours, theirs = trainer.state_dict(), again.state_dict()
    assert all(torch.equal(a, b) for a, b in zip(tensors(ours), tensors(theirs), strict=True))
    assert (ours["step"], ours["ema"]["updates"], ours["scheduler"]) == (6, 6, theirs["scheduler"])
    assert trainer.metrics() == again.metrics()


SCORES = [(0.5, 3.0), (0.5, 3.0), (0.4, 9.0), (0.4, 10.0)]  # after epochs 2, 4, 6 and 7


@pytest.fixture
def run(tmp_path, monkeypatch):
    """`pretrain` of seven epochs, evaluated after every second: -> the folder, what was evaluated and saved."""
    scores, evaluated, saved, marked = iter(SCORES), [], [], []

    def scripted(policy, task, config, *, envs):
        assert envs == "envs" and config.episodes == 10
        evaluated.append(parameters(policy))
        success, mean_return = next(scores)
        return Evaluation(
            list(range(10)), np.arange(10) < 10 * success, np.full(10, mean_return), np.full(10, 5), 1.5, 0, 1.0, 1
        )

    def opened(config, data):
        run = run_class.create(config.run_dir, config)
        save, mark = run.save_checkpoint, run.checkpoints.mark_best
        run.save_checkpoint = lambda step, *rest: saved.append(step) or save(step, *rest)
        run.checkpoints.mark_best = lambda step: marked.append(step) or mark(step)
        return run

    run_class = behaviour_cloning.Run
    monkeypatch.setattr(behaviour_cloning, "evaluate", scripted)
    monkeypatch.setattr(behaviour_cloning, "evaluation_envs", lambda *_: contextlib.nullcontext("envs"))
    monkeypatch.setattr(behaviour_cloning, "record", lambda *_: None)
    monkeypatch.setattr(behaviour_cloning.Run, "open", opened)
    monkeypatch.setattr(behaviour_cloning.Run, "plot_curve", lambda *_, **__: None)
    demos = Demonstrations(
        episodes(6, 5, 9, 4), source="demos", masks={"train": ["demo_0", "demo_2", "demo_3"], "valid": ["demo_1"]}
    )
    monkeypatch.setattr(behaviour_cloning, "demonstrations_for", lambda task, source, key, allow: demos)
    train = TrainConfig(**(TRAIN | {"epochs": 7, "eval_every": 4, "checkpoint_every": 6, "max_demos": 2}))
    config = PretrainConfig(
        task=TASK,
        policy=POLICY,
        train=train,
        evaluation=TrainingEvaluationConfig(episodes=10, temperatures=[]),
        dataset="demos.hdf5",
        run_dir=str(tmp_path / "run"),
        device="cpu",
    )
    summary = pretrain(config)
    return tmp_path / "run", summary, evaluated, saved, marked


def test_the_course_of_a_pretraining(run):
    """Of 15 windows in 2 minibatches an epoch."""
    folder, summary, evaluated, saved, marked = run
    lines = read_metrics(folder / "metrics.jsonl")
    assert [(line["step"], line["epoch"]) for line in lines] == [(2 * epoch, epoch) for epoch in range(1, 8)]
    assert [line.get("eval/return") for line in lines] == [None, 3.0, None, 3.0, None, 9.0, 10.0]
    assert saved == [4, 6, 8, 12, 14] and marked == [4, 8]  # the best, every third, the last; of equals the later
    policy = DiffusionPolicy.load(folder / "checkpoints" / "latest")
    assert torch.equal(parameters(policy), evaluated[-1])  # the averaged weights
    held_out = Windows(episodes(6, 5, 9, 4)[1:2], ["flat"], 2, 3).batch(torch.arange(5))
    loss = policy.loss(*held_out, torch.Generator().manual_seed(0))
    assert lines[-1]["validation_loss"] == pytest.approx(loss.item(), rel=1e-5)
    assert torch.equal(parameters(DiffusionPolicy.load(folder / "checkpoints" / "best")), evaluated[1])
    assert not torch.equal(evaluated[0], evaluated[1])
    assert (summary["steps"], summary["return"], summary["success_rate"]) == (14, 10.0, 0.4)
    assert summary["parameters"] == len(evaluated[0])
    assert json.loads((folder / "evaluation.json").read_text())["return"] == [10.0] * 10


def test_normalizers_are_fitted_to_what_is_trained_on(run):
    """Of three episodes for training the first two: neither the third nor the one for validation."""
    policy = DiffusionPolicy.load(run[0])
    train = [episodes(6, 5, 9, 4)[i] for i in (0, 2)]
    for normalizer, data in (
        (policy.obs_normalizer, np.concatenate([episode.obs["flat"] for episode in train])),
        (policy.action_normalizer, np.concatenate([episode.actions for episode in train])),
    ):
        low, high = data.min(0), data.max(0)
        np.testing.assert_allclose(normalizer.offset, (low + high) / 2, rtol=1e-6)
        np.testing.assert_allclose(normalizer.scale, (high - low) / 2, rtol=1e-6)
