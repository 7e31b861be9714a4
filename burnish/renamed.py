"""Keys that a run's config.yaml once had under another name, or not at all, so that older runs stay valid."""

from __future__ import annotations

from typing import Any, NamedTuple

from burnish.errors import BurnishError

FORMAT = 5
"""Of config.yaml; one that does not tell is of format 1."""


class Renamed(NamedTuple):
    """A key, or a whole section, that is called otherwise from `format` on."""

    format: int
    stage: str | None  # that has it; None: every run
    old: str  # dotted
    new: str | None  # None: it had no effect and is gone


ACTOR_KEYS = (
    *("rsm", "freeze_actor", "ft_denoising_steps", "draws", "draw_at", "actor_tau", "actor_lr", "actor_lr_final"),
    *("lr_decay_start", "lr_decay_updates", "policy_delay", "actor_steps", "old_policy_every", "bc_coef"),
    *("resample", "train_on"),
)
RENAMED = (
    *(Renamed(2, "best_of_n", f"stage.{key}", None) for key in ACTOR_KEYS),
    *(Renamed(3, None, f"train.{key}", None) for key in ("eval_every", "checkpoint_every")),  # counted epochs
    Renamed(5, None, "evaluation.allow", "allow"),
)
"""All of them, in the order in which they changed. To rename a key: a line here, and FORMAT one more."""


class Added(NamedTuple):
    """A key that came with `format`, and whose value in older runs, which did so, is not today's default."""

    format: int
    stage: str | None  # that has it; None: every run
    key: str  # dotted
    value: Any


CRITICS = ("dpmd", "sdac", "best_of_n")
ADDED = (
    *(Added(3, stage, "stage.draw_width", "narrow") for stage in CRITICS),
    *(Added(3, stage, "stage.n_step", 1) for stage in CRITICS),
    Added(3, "sdac", "stage.prior", "flat"),
    Added(3, "dppo", "stage.desired_kl", None),
    Added(3, None, "evaluation.temperatures", []),
    Added(4, None, "ends_at_success", False),
)
"""All of them. To change what runs do by a new key's default: a line here, and FORMAT one more."""


def with_todays_keys(config: dict[str, Any]) -> dict[str, Any]:
    """The content of a config.yaml of any format. Raises BurnishError where it is of a later one."""
    config = dict(config)
    found = config.pop("format", 1)
    if not isinstance(found, int) or found > FORMAT:
        raise BurnishError(f"format={found}: this version of Burnish reads formats up to {FORMAT}")
    for format, stage, old, new in RENAMED:
        if found < format and stage in (None, _stage(config)) and old.split(".")[0] in config:
            value = _section(config, old).pop(_leaf(old), _section)
            if value is not _section and new is not None:
                _section(config, new)[_leaf(new)] = value
    for format, stage, name, value in ADDED:
        section = name.split(".")[0] if "." in name else "stage"  # which says what kind of run it is
        if found < format and stage in (None, _stage(config)) and section in config:
            _section(config, name).setdefault(_leaf(name), value)
    return config


def instead_of(key: str, config: dict[str, Any]) -> str | None:
    """What to say of an unknown `key` of `config` that there was once; None of one that there never was."""
    for _, stage, old, new in RENAMED:
        if stage in (None, _stage(config)) and (key == old or key.startswith(f"{old}.")):
            where = f" with stage={stage}" if stage else ""
            return f"{key} has no effect{where}: leave it out" if new is None else f"{key} is called {new} now"
    return None


def _stage(config: dict[str, Any]) -> str | None:
    stage = config.get("stage")
    return stage.get("name") if isinstance(stage, dict) else None


def _section(config: dict[str, Any], key: str) -> dict[str, Any]:
    """Where `key` is, copied on the way, so that its value can be changed."""
    for name in key.split(".")[:-1]:
        found = config.get(name)
        config[name] = config = dict(found) if isinstance(found, dict) else {}
    return config


def _leaf(key: str) -> str:
    return key.rsplit(".", 1)[-1]
