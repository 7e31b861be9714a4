"""The `burnish` command. Nothing heavy is imported before it is known what to do."""

from __future__ import annotations

import argparse
import os
import sys
import traceback
from collections.abc import Callable, Sequence
from importlib import import_module
from pathlib import Path
from typing import Any

from burnish.commands.printing import print_config, report
from burnish.commands.table import COMMANDS, Command
from burnish.errors import BurnishError, Stopped
from burnish.foreign import REPORT, of_the_machine, one_line, write_plainly
from burnish.machine.stop import interrupted_by_signals
from burnish.plugins import import_plugins

MAINS = {
    "compare": "burnish.commands.compare",
    "reproduce": "burnish.commands.reproduce",
    "demo": "burnish.commands.demo",
    "toy": "burnish.commands.toy",
}
"""Commands with options of their own, which argparse's REMAINDER would refuse -> the module of their `main`."""


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command -> exit status: 0 done, 1 faults found or a defect, 2 a user's mistake, 130 interrupted,
    by SIGTERM too."""
    arguments = list(sys.argv[1:] if argv is None else argv)
    choose_opengl()
    write_plainly()
    try:
        with interrupted_by_signals():
            return _dispatch(arguments)
    except BurnishError as error:
        print(f"burnish: error: {one_line(str(error))}", file=sys.stderr)
        return 2
    except Stopped as stopped:
        print(f"burnish: {stopped}", file=sys.stderr)
        return 130
    except KeyboardInterrupt:
        print("burnish: interrupted: what was begun is not finished, what was saved stays", file=sys.stderr)
        return 130
    except BrokenPipeError:  # `burnish tasks | head`
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 141
    except Exception as error:
        said = of_the_machine(error)
        if said is None:
            traceback.print_exc()
        print(REPORT if said is None else f"burnish: error: {said}", file=sys.stderr)
        return 1 if said is None else 2


def choose_opengl() -> None:
    """Let MuJoCo draw without a screen on Linux, where nothing else was chosen. To be called before its import.

    Only with a library that is there: without it, MUJOCO_GL=egl makes the import of MuJoCo itself fail.
    """
    if sys.platform != "linux" or "MUJOCO_GL" in os.environ or "DISPLAY" in os.environ:
        return
    from ctypes.util import find_library

    for backend, library in (("egl", "EGL"), ("osmesa", "OSMesa")):
        if find_library(library):
            os.environ["MUJOCO_GL"] = backend
            return


def _dispatch(arguments: list[str]) -> int:
    for command in COMMANDS:
        words = command.name.split()
        if arguments[: len(words)] == words:
            return _run_command(command, arguments[len(words) :])
    if arguments[:1] and arguments[0] in MAINS:
        main: Callable[[Sequence[str]], int] = import_module(MAINS[arguments[0]]).main
        return main(arguments[1:])
    options = _parser().parse_args(arguments)
    import_plugins()
    run: Callable[[argparse.Namespace], int] = options.run
    return run(options)


def _run_command(command: Command, arguments: list[str]) -> int:
    flags = {argument for argument in arguments if argument.startswith("-")}
    overrides = [argument for argument in arguments if not argument.startswith("-")]
    if flags & {"-h", "--help"}:
        print(command.help(overrides))
        return 0
    unknown = flags - {"-m", "--multirun", "--cfg"}
    if unknown:
        raise BurnishError(
            f"burnish {command.name}: unknown option {min(unknown)}; settings are key=value, options are "
            "--multirun, --cfg and --help"
        )
    if flags & {"-m", "--multirun"}:
        from burnish.commands.sweep import run_sweep

        return run_sweep(command, overrides, only_print="--cfg" in flags)
    from burnish.commands.configure import configure

    config = configure(command, overrides)
    if "--cfg" in flags:
        print_config(command, config)
        return 0
    report(command.run(command.parse(config)))
    return 0


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="burnish",
        description="Pretrain diffusion policies on robot demonstrations, then improve them by RL in MuJoCo.",
        epilog="Start with `burnish doctor`, then `burnish demo`. Each command explains itself with --help.",
    )
    parser.add_argument("--version", action=_Version, nargs=0, help="print the version and stop")
    commands = parser.add_subparsers(title="commands", metavar="COMMAND", required=True)
    for command in COMMANDS:
        if " " not in command.name:
            commands.add_parser(command.name, help=command.summary)
    _add_data(commands)
    _add_policy(commands)
    tasks = commands.add_parser("tasks", help="list the tasks and whether they run here, or check one of your own")
    tasks.add_argument("tasks", nargs="*", metavar="TASK", help="a name, or a YAML file (default: all of the package)")
    tasks.add_argument("--check", action="store_true", help="make each environment and step it")
    tasks.add_argument("--show", action="store_true", help="print the keys of each, to start a file of your own from")
    tasks.set_defaults(run=_tasks)
    commands.add_parser("doctor", help="check this installation").set_defaults(run=_doctor)
    commands.add_parser("compare", help="run a grid of trainings from the same checkpoints, and report")
    commands.add_parser("reproduce", help="run a committed comparison again and say whether its figures agree")
    commands.add_parser("demo", help="the whole way in a few minutes")
    commands.add_parser("toy", help="RSM's toy experiment: densities sampled from their energies alone")
    return parser


def _add_data(commands: Any) -> None:
    data = commands.add_parser("data", help="look at, check, make and fetch demonstrations")
    actions = data.add_subparsers(title="commands", metavar="COMMAND", required=True)
    inspect = actions.add_parser("inspect", help="what is in a file of demonstrations")
    validate = actions.add_parser("validate", help="look for faults; exit status 1 where there are errors")
    for parser in (inspect, validate):
        parser.add_argument("file", help="HDF5 (robomimic, D4RL), npz (DPPO), a Minari folder, or shipped:NAME")
        parser.add_argument("--filter-key", help="robomimic filter key: only its episodes")
    inspect.set_defaults(run=_inspect)
    validate.add_argument("--task", help="require the observations of this task, and that it was recorded in it")
    differ = "in what the file's environment may differ from the task, as robot controller (docs/data.md)"
    validate.add_argument("--allow", nargs="+", default=[], metavar="WHAT", help=differ)
    validate.add_argument("--horizon", type=int, default=1, help="report episodes shorter than this (Tp)")
    validate.add_argument(
        "--replay", type=int, default=3, metavar="K", help="replay K episodes in the simulator (default: 3)"
    )
    validate.set_defaults(run=_validate)
    convert = actions.add_parser(
        "convert", help="robosuite's raw states, or a CSV table -> robomimic's format with observations"
    )
    convert.add_argument("source", help="HDF5 file with states, as robosuite or robomimic records it, or NAME.csv")
    convert.add_argument("out", help="HDF5 file to write")
    convert.add_argument("--task", help="the task it was recorded in, where the file does not tell")
    convert.add_argument("--robots", nargs="+", metavar="ROBOT", help="its robots, where the file does not tell")
    convert.add_argument("--allow", nargs="+", default=[], metavar="WHAT", help=f"{differ}: it is taken as it is there")
    convert.add_argument("--overwrite", action="store_true", help="replace OUT where it is there")
    scale = "of a CSV: what an action of 1 stands for there, one number or one for each dimension (default: 1)"
    convert.add_argument("--action-scale", nargs="+", type=float, metavar="X", help=scale)
    convert.set_defaults(run=_convert)
    for command in COMMANDS:
        if command.name.startswith("data "):
            actions.add_parser(command.name.removeprefix("data "), help=command.summary)
    download = actions.add_parser("download", help="fetch one of robomimic's datasets from the Hugging Face hub")
    download.add_argument("task", help="lift, can, square, transport or tool_hang")
    download.add_argument("--type", default="ph", help="ph, mh, mg or paired (default: ph)")
    download.add_argument("--hdf5-type", default="low_dim", help="low_dim, raw; for mg low_dim_sparse, low_dim_dense")
    download.add_argument("--to", default="data/robomimic", help="folder (default: data/robomimic)")
    download.set_defaults(run=_download)


def _add_policy(commands: Any) -> None:
    policy = commands.add_parser("policy", help="change how a saved policy samples")
    actions = policy.add_subparsers(title="commands", metavar="COMMAND", required=True)
    change = actions.add_parser("set", help="its temperature, of how many chunks it takes the mean, or its sampler")
    change.add_argument("folder", help="of the policy, or a run's: its latest checkpoint")
    change.add_argument(
        "settings", nargs="+", metavar="key=value", help="temperature=0.5, mean_of=16, sampler=ddim, sampler_steps=5"
    )
    change.set_defaults(run=_set_policy)


class _Version(argparse.Action):
    def __call__(self, parser: argparse.ArgumentParser, *rest: Any) -> None:
        from burnish import __version__

        print(f"burnish {__version__}")
        parser.exit()


def _inspect(options: argparse.Namespace) -> int:
    from burnish.datasets.checking.inspect import inspect
    from burnish.datasets.load import read

    print(inspect(read(options.file, options.filter_key)))
    return 0


def _validate(options: argparse.Namespace) -> int:
    from burnish.datasets.checking.validate import validate
    from burnish.envs.task import load_task

    task = load_task(options.task) if options.task else None
    result = validate(options.file, options.replay, options.filter_key, None, options.horizon, task, options.allow)
    for finding in result.findings:
        print(finding)
    print(result.note)
    n_warnings = len(result.findings) - result.n_errors
    print(f"{options.file}: {len(result.demos.episodes)} episodes, {result.n_errors} errors, {n_warnings} warnings")
    return 1 if result.n_errors else 0


def _convert(options: argparse.Namespace) -> int:
    from burnish.datasets.collecting.convert import convert_csv, convert_robosuite
    from burnish.envs.task import load_task

    task = load_task(options.task) if options.task else None
    source, out = Path(options.source), Path(options.out)
    if options.source.lower().endswith(".csv"):
        keys = task.obs_keys if task else []
        report(convert_csv(source, out, options.action_scale or (1.0,), obs_keys=keys, overwrite=options.overwrite))
        return 0
    if options.action_scale:
        raise BurnishError(f"--action-scale is for a CSV file: {options.source} is none")
    result = convert_robosuite(
        source, out, task=task, robots=options.robots, allow=options.allow, overwrite=options.overwrite
    )
    for episode in result.episodes:
        success = "succeeds" if episode.success else "does not succeed"
        print(f"{episode.name}: {episode.n_steps} steps ({episode.n_clipped} clipped), {success}")
    print(f"wrote {result.out}: {len(result.episodes)} episodes of {result.env_name}")
    return 0


def _download(options: argparse.Namespace) -> int:
    from burnish.datasets.download import download

    report(download(options.task, options.type, options.hdf5_type, Path(options.to)))
    return 0


def _set_policy(options: argparse.Namespace) -> int:
    from burnish.commands.policy import set_policy

    print(set_policy(options.folder, options.settings))
    return 0


def _tasks(options: argparse.Namespace) -> int:
    from burnish.commands.tasks import print_tasks

    return print_tasks(options.tasks, check=options.check, show=options.show)


def _doctor(options: argparse.Namespace) -> int:
    from burnish.commands.doctor import doctor

    return doctor()


if __name__ == "__main__":
    sys.exit(main())
