"""`key=value` from the command line over the YAML files of burnish.configs over the defaults of the dataclasses.

The files hold differences alone. Hydra composes them and reads what is given on the command line.
"""

from __future__ import annotations

import difflib
import itertools
from collections.abc import Collection, Iterator, Mapping
from importlib import resources
from pathlib import Path
from typing import Any, NamedTuple, get_type_hints

from burnish.config import completed, load_yaml, parse, section_class, unknown_key
from burnish.errors import BurnishError
from burnish.foreign import one_line, told_as
from burnish.plugins import import_plugins
from burnish.registry import is_address, load, registered
from burnish.renamed import instead_of

CONFIG_MODULE = "burnish.configs"
CONFIGS = {
    "pretrain": "burnish.pretrain.behaviour_cloning:PretrainConfig",
    "finetune": "burnish.finetune.config:FinetuneConfig",
    "offline": "burnish.finetune.config:FinetuneConfig",
    "scratch": "burnish.finetune.config:FinetuneConfig",
    "evaluate": "burnish.commands.evaluate:EvaluateConfig",
    "headroom": "burnish.commands.headroom:HeadroomConfig",
    "collect": "burnish.datasets.collecting.config:CollectConfig",
    "behaviour": "burnish.datasets.collecting.sac_actor:BehaviourConfig",
}
"""A command's YAML file -> the dataclass of its configuration."""
PATHS = ("dataset", "policy", "out", "run_dir", "resume", "behaviour", "demos")
"""Last names of keys whose values need no quotes, whatever they contain; ~ in them is the home folder."""
FREE_DICT = "task.env_kwargs."


class Chooser(NamedTuple):
    """How the options of a group name a class: by which `key`, of which `kind` in the registry."""

    kind: str
    key: str


CHOOSERS = {
    "stage": Chooser("stage", "name"),
    "policy": Chooser("policy", "kind"),
    "network": Chooser("policy", "kind"),
}
"""Groups whose options may be a class: a name that a plugin registered, or module:Class."""


def compose(command: str, overrides: list[str], sections: Mapping[str, Any] | None = None) -> dict[str, Any]:
    """The resolved configuration of `configs/<command>.yaml` with `overrides` applied; not parsed yet. `sections` stand
    in for options of config groups that are not given.

    A value that must be given stays "???".
    Raises BurnishError for a malformed override, an unknown key or an unknown option of a group.
    """
    from hydra import compose as hydra_compose
    from hydra import initialize_config_module
    from hydra.errors import HydraException
    from omegaconf import OmegaConf
    from omegaconf.errors import OmegaConfBaseException

    files = dict(sections or {})
    _require_no_references(files)
    files["plugins"] = import_plugins([*files.get("plugins", []), *_given_plugins(overrides)])
    groups = config_groups(command)
    paths, choices, values = {}, [], []
    for override in overrides:
        key, value = split(override)
        if key == "plugins":
            continue
        if _is_path(key) and key not in groups:
            paths[key] = _unquote(value)
        elif key in groups and is_file(value):
            files[key] = _checked_option(command, key, value)
        elif key in groups and _is_class(key, value):
            files[key] = {CHOOSERS[key].key: value}
        elif key in groups:
            files.pop(key, None)
            _check_option(key, value)
            choices.append(override)
        else:
            values.append(_checked(override))
    try:
        with initialize_config_module(CONFIG_MODULE, version_base="1.3"):
            differences: Any = OmegaConf.to_container(hydra_compose(command, choices))
        given = [*map(_read, values), *paths.items()]
        for key, value in given:
            _require_own_keys(key, value)
        config = OmegaConf.create(_completed(config_class(command), {**differences, **files}, given))
        known: Any = OmegaConf.to_container(config)
        for key, value in given:
            _check_key(key, known)
            with told_as(f"{key}={_shown(value)}: cannot be set"):
                OmegaConf.update(config, key, value, force_add=key.startswith(FREE_DICT))
        resolved = OmegaConf.to_container(config, resolve=True)
    except (HydraException, OmegaConfBaseException) as error:
        raise BurnishError(one_line(" ".join(str(error).split()), 600)) from error
    assert isinstance(resolved, dict)
    resolved = with_home({str(key): value for key, value in resolved.items()}, (*PATHS, "expert"))
    if "run_dir" in resolved and "run_dir" not in paths:  # module:Class in it is no good name of a folder
        resolved["run_dir"] = str(resolved["run_dir"]).replace(":", "-")
    return resolved


def _require_no_references(tree: Any, where: str = "") -> None:
    """Raise BurnishError for ${...} in what a file says: it could read this user's environment."""
    if isinstance(tree, str) and "${" in tree:
        raise BurnishError(f"{where}={_shown(tree)}: expected no ${{...}}, a file's values are taken as they are")
    if isinstance(tree, Mapping):
        for key, value in tree.items():
            _require_no_references(value, f"{where}.{key}" if where else str(key))
    elif isinstance(tree, list):
        for i, value in enumerate(tree):
            _require_no_references(value, f"{where}[{i}]")


def _require_own_keys(key: str, value: Any) -> None:
    """Raise BurnishError for ${NAME:...}, which calls a function: words may come from a comparison's file."""
    for item in value if isinstance(value, list) else value.values() if isinstance(value, dict) else [value]:
        if isinstance(item, (list, dict)):
            _require_own_keys(key, item)
        elif isinstance(item, str) and ":" in item.partition("${")[2]:
            raise BurnishError(f"{key}={_shown(value)}: expected the name of a key in ${{...}}, without a colon")


def _shown(value: Any) -> str:
    return one_line(str(value), 200)


def _given_plugins(overrides: list[str]) -> list[str]:
    """Of the last plugins=[...] among them."""
    last = [override for override in overrides if split(override)[0] == "plugins"][-1:]
    found = [_parsed(_checked(override)).value() for override in last]
    if found and not isinstance(found[0], list):
        raise BurnishError(f"{last[0]}: expected a list of modules, as plugins=[my_package.robots]")
    return found[0] if found else []


def _is_class(group: str, value: str) -> bool:
    """Whether an option of a group is a class: one that a plugin registered, or module:Class."""
    return group in CHOOSERS and (is_address(value) or value in registered(CHOOSERS[group].kind))


def _completed(cls: type, given: dict[str, Any], overrides: list[tuple[str, Any]]) -> dict[str, Any]:
    """`completed`; first with the `name` and `kind` of sections among `overrides`, which choose the keys there are."""
    plain = completed(cls, given)
    choosing = [(key, value) for key, value in overrides if key.rpartition(".")[2] in ("name", "kind")]
    changed = [(key, value) for key, value in choosing if _differs(plain, key.split("."), value)]
    for key, value in changed:
        given = _with(given, key.split("."), value)
    return completed(cls, given) if changed else plain


def _differs(tree: Any, keys: list[str], value: Any) -> bool:
    """Whether the key is in `tree`, with another value."""
    if len(keys) == 1:
        return keys[0] in tree and tree[keys[0]] != value
    return isinstance(tree.get(keys[0]), dict) and _differs(tree[keys[0]], keys[1:], value)


def _with(tree: dict[str, Any], keys: list[str], value: Any) -> dict[str, Any]:
    """A copy of `tree` with that value at that key."""
    below = tree.get(keys[0])
    return {**tree, keys[0]: value if len(keys) == 1 else _with(below if below else {}, keys[1:], value)}


def parse_value(override: str) -> Any:
    """The value of one `key=value`, as `compose` would read it."""
    key, value = split(override)
    if not _is_path(key):
        return _parsed(override).value()
    text = _unquote(value)
    return text and in_home(key, text)


def in_home(key: str, path: str) -> str:
    """A path with its leading ~ or ~user expanded. Raises BurnishError, naming the key, where there is no such user."""
    if not path.startswith("~"):
        return path
    try:
        return str(Path(path).expanduser())
    except RuntimeError as error:
        if Path(path).exists():
            return path
        raise BurnishError(
            f"{key}={path}: there is no such home folder (for a folder of this name: {key}=./{path})"
        ) from error


def with_home(tree: Mapping[str, Any], paths: Collection[str], where: str = "") -> dict[str, Any]:
    """A copy of plain data in which ~ is expanded in each key of those last names, the sections' among them."""
    result = dict(tree)
    for name, value in tree.items():
        key = f"{where}{name}"
        if isinstance(value, Mapping) and not f"{key}.".startswith(FREE_DICT):
            result[name] = with_home(value, paths, f"{key}.")
        elif name in paths and isinstance(value, list):
            result[name] = [in_home(key, item) if isinstance(item, str) else item for item in value]
        elif name in paths and isinstance(value, str):
            result[name] = in_home(key, value)
    return result


def expand_sweep(command: str, overrides: list[str]) -> list[list[str]]:
    """All jobs of a sweep: combinations of `a=1,2`, `b=range(0,3)`, `c=choice(x,y)`; the last varies fastest.

    Raises BurnishError for a malformed override and for sweeps that need a random sampler.
    """
    groups = config_groups(command)
    options = []
    for override in overrides:
        key, value = split(override)
        if _is_path(key) and key not in groups:
            options.append([f"{key}={part}" for part in _split_paths(value)])
            continue
        parsed = _parsed(override)
        if parsed.is_discrete_sweep():
            prefix = override.split("=", 1)[0]
            # the texts of a string iterator are quoted, for values to be read again
            texts = parsed.sweep_iterator() if key in groups else parsed.sweep_string_iterator()
            options.append([f"{prefix}={text}" for text in texts])
        elif parsed.is_sweep_override():
            raise BurnishError(f"{override}: --multirun takes a,b,c or choice(a,b,c) or range(start,stop,step)")
        else:
            options.append([override])
    return [list(job) for job in itertools.product(*options)]


def _is_path(key: str) -> bool:
    return key.rsplit(".", 1)[-1] in PATHS


def config_class(command: str) -> type:
    """The dataclass of a command's configuration."""
    return load(CONFIGS[command])


def config_groups(command: str) -> dict[str, list[str]]:
    """The config groups of a command -> their options, the default first."""
    import yaml

    body = yaml.safe_load(config_text(command))
    chosen = {key: option for entry in body["defaults"] if isinstance(entry, dict) for key, option in entry.items()}
    return {
        group: sorted(_options(group), key=lambda name: (name != default, name)) for group, default in chosen.items()
    }


def _options(group: str) -> list[str]:
    """Those of the package, and what plugins registered."""
    return [*group_options(group), *(registered(CHOOSERS[group].kind) if group in CHOOSERS else ())]


def is_file(option: str) -> bool:
    """Whether an option of a group is a YAML file of the user's, by its name."""
    return option.endswith((".yaml", ".yml"))


def read_option(group: str, path: str) -> dict[str, Any]:
    """What a YAML file says in place of an option of `group`: its keys. Raises BurnishError where it cannot be read."""
    import yaml

    try:
        content = load_yaml(Path(in_home(group, path)).read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError, yaml.YAMLError) as error:
        reason = getattr(error, "strerror", None) or _shown(" ".join(str(error).split()))
        raise BurnishError(f"{group}={path} cannot be read: {reason}") from error
    if not isinstance(content, dict):
        shown = ", as `burnish tasks lift --show` prints them" if group == "task" else ""
        raise BurnishError(f"{group}={path}: expected keys and values{shown}")
    return content


def group_options(group: str) -> list[str]:
    """The options of one config group that come with the package, by name."""
    folder = resources.files(CONFIG_MODULE) / group
    return sorted(file.name.removesuffix(".yaml") for file in folder.iterdir() if file.name.endswith(".yaml"))


def config_text(name: str) -> str:
    """The YAML text of `configs/<name>.yaml`."""
    return (resources.files(CONFIG_MODULE) / f"{name}.yaml").read_text(encoding="utf-8")


def split(override: str) -> tuple[str, str]:
    """`+task.env_kwargs.x=1` -> ("task.env_kwargs.x", "1")."""
    key, equals, value = override.partition("=")
    key = key.strip().lstrip("+~")
    if not key or (not equals and not override.startswith("~")):
        raise BurnishError(f"{override}: expected key=value (write lists as key=[a,b], without spaces)")
    return key, value


def _parsed(override: str) -> Any:
    from hydra.core.override_parser.overrides_parser import OverridesParser
    from hydra.errors import HydraException

    try:
        return OverridesParser.create().parse_override(override)
    except (HydraException, ValueError, RecursionError) as error:  # numbers and brackets beyond Python's limits
        raise BurnishError(
            f"{_shown(override)}: cannot be read; put a value with special characters in quotes: \"key='a(b)'\""
        ) from error


def _checked(override: str) -> str:
    parsed = _parsed(override)
    if parsed.is_sweep_override():
        raise BurnishError(f"{override}: several values need --multirun (or, for one text with a comma, quotes)")
    if parsed.is_delete():
        raise BurnishError(f"{override}: a key cannot be taken away; expected key=value")
    return override


def _check_option(group: str, value: str) -> None:
    options = _options(group)
    if value in options:
        return
    if "," in value:
        raise BurnishError(f"{group}={value}: several values need --multirun")
    near = difflib.get_close_matches(value, options, n=1, cutoff=0.5)
    hint = f"did you mean {near[0]}? " if near else ""
    own = "a YAML file, or module:Class" if group in CHOOSERS else "or a YAML file"
    raise BurnishError(f"{group}={value}: {hint}expected one of {', '.join(options)}, {own}")


def _checked_option(command: str, group: str, path: str) -> dict[str, Any]:
    """`read_option`. Raises BurnishError, naming the file, where it does not make one."""
    content = read_option(group, path)
    cls: Any = section_class(get_type_hints(config_class(command))[group], content, group)
    try:
        _require_no_references(content, group)
        parse(cls, content, group)
    except BurnishError as error:
        raise BurnishError(f"{path}: {error}") from error
    return content


def _check_key(key: str, config: dict[str, Any]) -> None:
    known = set(_dotted_keys(config))
    if key not in known and not key.startswith(FREE_DICT):
        raise BurnishError(instead_of(key, config) or unknown_key(key, known))


def _read(override: str) -> tuple[str, Any]:
    """Key and value of `key=value`."""
    return split(override)[0], _parsed(override).value()


def _dotted_keys(tree: Any, prefix: str = "") -> Iterator[str]:
    for name, value in tree.items():
        yield prefix + str(name)
        if isinstance(value, dict):
            yield from _dotted_keys(value, f"{prefix}{name}.")


def _unquote(text: str) -> str | None:
    if len(text) > 1 and text[0] == text[-1] and text[0] in "'\"":
        return text[1:-1]
    return None if text == "null" else text


def _split_paths(text: str) -> list[str]:
    return [text] if text[:1] in "'\"[" else text.split(",")
