"""A scheduler of diffusers as a sampler, to evaluate with: DPM-Solver++, UniPC, Heun, Euler, DEIS, LCM and their like.

The network's output becomes the clean action that our process estimates and clips, and this is what the scheduler is
given: as x_0 itself, or, of schedulers that do not take it, as the eps that it means, (x - signal x0hat) / noise. So
the bound of actions holds for all of them, and any prediction type runs under any scheduler.

diffusers is imported here alone, when such a sampler is made.
"""

from __future__ import annotations

import difflib
import inspect
import json
import math
import zlib
from typing import Any

import torch
from torch import Tensor, nn

from burnish.diffusion.process import FlowProcess, NoiseProcess, Process
from burnish.diffusion.sampler import DIFFUSERS, Chain, Denoise, Sampler, StdHead
from burnish.diffusion.transition import Gaussian, StdBounds
from burnish.errors import BurnishError
from burnish.foreign import cause, told_as

BETWEEN_GRID = 1e-3  # timesteps this near to a whole number are one


class SchedulerSampler(Sampler):
    """See the module's docstring.

    Timesteps are spaced by diffusers' "trailing": from the noisiest on, as few steps need it (Lin et al. 2024,
    arXiv 2305.08891). Of a flow they are what its schedulers make of `steps`, where those are whole timesteps.

    Args:
        process, temperature: as in `Sampler`.
        name: of the scheduler's class.
        steps: `num_inference_steps`. Heun's two calls a step make S, the calls of the network, larger.
        steps_key: what the setting of `steps` is called, for messages.

    Raises:
        BurnishError: there is no such scheduler, it does not run for this process, or it asks between timesteps.
    """

    gaussian = False

    def __init__(
        self, process: Process, name: str, steps: int, temperature: float = 1.0, *, steps_key: str = "sampler_steps"
    ):
        nn.Module.__init__(self)
        self.process, self.kind, self.temperature = process, DIFFUSERS + name, temperature
        self._said = f"sampler={DIFFUSERS}{name}"
        if not 1 <= steps <= process.denoising_steps:
            raise BurnishError(f"{steps_key}={steps}: expected 1 to denoising_steps={process.denoising_steps}")
        self.steps, self.flow = steps, isinstance(process, FlowProcess)
        cls = scheduler_class(name)
        taken = inspect.signature(cls.step).parameters
        self._takes_noise, self._takes_generator = "variance_noise" in taken, "generator" in taken
        self.scheduler: Any = None
        failed = ""
        for prediction_type in ("flow",) if self.flow else ("sample", "epsilon"):
            try:
                self._gives, self.scheduler = prediction_type, cls(**self._settings(cls, prediction_type))
                self.draws = self._try()
                break
            except Exception as error:  # whatever a scheduler raises that does not know this prediction type
                self.scheduler, failed = None, cause(error)
        if self.scheduler is None:
            raise BurnishError(f"{self._said} does not run with {steps_key}={steps} here: {failed}")
        if self.draws and temperature != 1:
            raise BurnishError(
                f"temperature={temperature:g}: expected 1 with {self._said}, which draws noise of its own"
            )
        self._set_grid(steps_key)

    def _settings(self, cls: Any, prediction_type: str) -> dict[str, Any]:
        """What the scheduler is told, of what it knows."""
        K = self.process.denoising_steps
        settings: dict[str, Any] = {"num_train_timesteps": K}
        if isinstance(self.process, NoiseProcess):
            settings |= {
                "trained_betas": self.process.betas.tolist(),
                "prediction_type": prediction_type,
                "timestep_spacing": "trailing",
                "clip_sample": False,  # our process has done so
                "original_inference_steps": K,
            }
        known = inspect.signature(cls.__init__).parameters
        needed = {"trained_betas"} if not self.flow else set()
        if needed - set(known) or (self.flow and "FlowMatch" not in cls.__name__):
            expected = "a scheduler of flow matching (FlowMatch...)" if self.flow else "one with trained_betas"
            raise BurnishError(f"it is made for other processes; expected {expected}")
        return {name: value for name, value in settings.items() if name in known}

    def _begin(self) -> None:
        """Make the scheduler forget the chain before."""
        taken = inspect.signature(self.scheduler.set_timesteps).parameters
        if self.flow and "sigmas" in taken:
            sigmas = [1 - j / self.steps for j in range(self.steps)]
            self.scheduler.set_timesteps(self.steps, sigmas=sigmas)
        else:
            self.scheduler.set_timesteps(self.steps)

    def _try(self) -> bool:
        """Run a chain of one number -> whether it drew noise with the generator that it was given."""
        self._begin()
        x, generator = torch.full((1, 1, 1), 0.5), torch.Generator().manual_seed(0)
        before = generator.get_state()
        for t in self.scheduler.timesteps:
            self._seen(x, t)  # some count on being asked
            x = self._step(torch.zeros_like(x), t, x, 0.5, 0.5, [generator], torch.zeros_like(x))
        if not bool(x.isfinite().all()):
            raise BurnishError("its numbers are not finite")
        return not torch.equal(generator.get_state(), before)

    def _set_grid(self, steps_key: str) -> None:
        shift = 1 if self.flow else 0  # a flow's are sigma K = k + 1
        asked = [float(t) - shift for t in self.scheduler.timesteps]
        K = self.process.denoising_steps
        between = [t for t in asked if abs(t - round(t)) > BETWEEN_GRID or not 0 <= round(t) < K]
        if between:
            raise BurnishError(
                f"{steps_key}={self.steps}: {self._said} asks the network at timestep {between[0]:.2f}, "
                f"which knows whole ones of 0 to {K - 1}; expected another number of steps"
            )
        self._timesteps = [round(t) for t in asked]
        if self._timesteps != sorted(self._timesteps, reverse=True):
            raise BurnishError(f"{self._said} runs from the action to noise; expected one that takes noise away")
        self.register_buffer("timesteps", torch.tensor(self._timesteps), persistent=False)

    def mean(self, output: Tensor, x: Tensor, i: Tensor | int) -> Tensor:
        raise self._no_likelihood()

    def transition(self, output: Tensor, x: Tensor, i: Tensor | int, std: Tensor | None = None) -> Gaussian:
        raise self._no_likelihood()

    def widen(self, x0_errors: Tensor) -> None:
        raise self._no_likelihood()

    def bounded_std(self, bounds: StdBounds) -> Tensor:
        raise self._no_likelihood()

    def _no_likelihood(self) -> BurnishError:
        return BurnishError(f"{self._said} is for evaluation: its steps have no likelihood; expected ddpm or ddim")

    def sample(
        self,
        denoise: Denoise,
        noise: Tensor,
        *,
        bounds: StdBounds | None = None,
        noise_clip: float = math.inf,
        keep: int = 0,
        std_head: StdHead | None = None,
    ) -> tuple[Tensor, Chain]:
        """Run the scheduler from tau noise[0] -> clean sample (B, ...), and a chain of no transitions.

        A scheduler that takes `variance_noise` gets tau noise[i + 1]; one that draws by itself gets for each sample a
        generator seeded with that sample's noise, so that no sample depends on which others run beside it.
        """
        if bounds is not None or noise_clip != math.inf or keep or std_head is not None:
            raise self._no_likelihood()
        self._begin()
        rows = noise.flatten(1, -3) if noise.dim() > 3 else noise  # (S + 1, R, Tp, Da)
        generators = row_generators(rows) if self.draws else []
        x = self.temperature * getattr(self.scheduler, "init_noise_sigma", 1.0) * rows[0]
        for i, (k, t) in enumerate(zip(self._timesteps, self.scheduler.timesteps)):
            seen = self._seen(x, t)
            output = denoise(seen.view(noise.shape[1:]), i)
            x0 = self.process.predict_x0(output, seen.view(noise.shape[1:]), k).reshape(x.shape)
            x = self._step(x0, t, x, *self.process.level(k), generators, self.temperature * rows[i + 1])
        empty = noise.new_empty(noise.shape[1], 0, *noise.shape[2:])
        return x.view(noise.shape[1:]), Chain(empty, empty, noise.new_empty(0))

    def _seen(self, x: Tensor, t: Tensor) -> Tensor:
        """What the network gets to see of the scheduler's state."""
        scale = getattr(self.scheduler, "scale_model_input", None)
        return x if scale is None else scale(x, t)

    def _step(
        self,
        x0: Tensor,
        t: Tensor,
        x: Tensor,
        signal: float,
        noise: float,
        generators: list[torch.Generator],
        draw: Tensor,
    ) -> Tensor:
        """One step of the scheduler, from the estimate `x0`, all (R, Tp, Da)."""
        output = x0
        if self._gives == "epsilon":
            output = (self._seen(x, t) - signal * x0) / noise
        elif self._gives == "flow":  # in its clock, from action to noise: eps - x_0 = (x - x_0) / noise
            output = (x - x0) / noise
        given: dict[str, Any] = {}
        if self._takes_noise:
            given["variance_noise"] = draw
        elif self._takes_generator and generators:
            given["generator"] = generators
        stepped: Tensor = self.scheduler.step(output, t, x, return_dict=False, **given)[0]
        return stepped

    def scheduler_config(self) -> dict[str, Any]:
        """Of this scheduler, for a network that gives what the process says."""
        config: dict[str, Any] = json.loads(self.scheduler.to_json_string())
        own = {"prediction_type": self.process.prediction_type}
        if self.process.clip_sample is not None:
            own |= {"clip_sample": True, "clip_sample_range": self.process.clip_sample}  # type: ignore[dict-item]
        return config | {name: value for name, value in own.items() if name in config}


def row_generators(noise: Tensor) -> list[torch.Generator]:
    """A generator for each row of `noise` (S + 1, R, ...), seeded with that row's draws for the transitions."""
    by_row = noise[1:].transpose(0, 1).flatten(1).cpu().contiguous()
    return [torch.Generator().manual_seed(zlib.crc32(row.numpy().tobytes())) for row in by_row]


def scheduler_class(name: str) -> Any:
    """The class of diffusers. Raises BurnishError where there is none of that name."""
    with told_as(f"sampler={DIFFUSERS}{name} needs diffusers: pip install diffusers"):
        import diffusers
        from diffusers.schedulers.scheduling_utils import SchedulerMixin
    known = [each for each in dir(diffusers.schedulers) if each.endswith("Scheduler") and not each.startswith("Flax")]
    cls = getattr(diffusers, name, None) if name in known else None
    if isinstance(cls, type) and issubclass(cls, SchedulerMixin) and hasattr(cls, "step"):
        return cls
    near = difflib.get_close_matches(name, [each for each in known if each != name], n=1)
    hint = f"did you mean {near[0]}?" if near else "e.g. DPMSolverMultistepScheduler"
    missing = "cannot run it here" if name in known else "has no such scheduler"
    raise BurnishError(f"sampler={DIFFUSERS}{name}: diffusers {diffusers.__version__} {missing}; {hint}")
