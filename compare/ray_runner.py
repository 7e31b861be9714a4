"""Cells as tasks of a Ray cluster: the same commands, in the same folders, which every machine must see.

Ray decides when and where a cell runs; cell_cores and cell_memory_gb are what it asks for.
"""

from __future__ import annotations

import logging
import os
import signal
import subprocess
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from burnish.compare.config import CompareConfig
from burnish.compare.grid import POLL_SECONDS, STOPPED_STATUS
from burnish.compare.local_runner import GIGABYTE, burnish_program, cell_environment, dying_with_parent
from burnish.compare.plan import PlannedRun
from burnish.errors import BurnishError
from burnish.foreign import told_as


class RayRunner:
    """See the module's docstring; a `burnish.compare.grid.Runner`. Close it by `close`.

    It joins the cluster that RAY_ADDRESS names, or else starts Ray on this machine with `cores` and `memory_gb`.

    Raises:
        BurnishError: Ray is not installed, cannot be reached, or has no machine for a single cell.
    """

    def __init__(self, config: CompareConfig):
        with told_as("runner=ray needs Ray", ": pip install 'burnish[ray]', or runner=local"):
            import ray
        self.ray = ray
        address = os.environ.get("RAY_ADDRESS", "local")
        own: dict[str, Any] = {"num_cpus": config.cores, "include_dashboard": False}
        if config.memory_gb:
            own["_memory"] = int(config.memory_gb * GIGABYTE)
        with told_as(f"runner=ray: no cluster at RAY_ADDRESS={address}", "; or use runner=local"):
            ray.init(
                address=address, log_to_driver=False, logging_level=logging.ERROR, **(own if address == "local" else {})
            )
            resources = [node["Resources"] for node in ray.nodes()]
        needed = {"CPU": config.cell_cores, "memory": config.cell_memory_gb * GIGABYTE}
        if not any(all(found.get(k, 0) >= v for k, v in needed.items()) for found in resources):
            self.close()
            raise BurnishError(
                f"runner=ray: no machine of the cluster has {config.cell_cores} cores and {config.cell_memory_gb:g} GB "
                "for one cell: lower cell_cores or cell_memory_gb"
            )
        self.cores = config.cell_cores
        self.remote = ray.remote(num_cpus=self.cores, memory=int(needed["memory"]), max_retries=0)(run_words)
        self.running: dict[Any, PlannedRun] = {}
        self.asked_to_stop = False

    def has_room(self) -> bool:
        return not self.asked_to_stop  # Ray has the queue

    def start(self, cell: PlannedRun, words: Sequence[str], log: Path) -> None:
        reference = self.remote.remote(list(words), str(log), str(Path.cwd()), self.cores)
        self.running[reference] = cell

    def ended(self) -> list[tuple[PlannedRun, int]]:
        if not self.running:
            return []
        with told_as("runner=ray: the cluster does not answer"):
            done, _ = self.ray.wait(list(self.running), num_returns=len(self.running), timeout=0)
        return [(self.running.pop(reference), self._status(reference)) for reference in done]

    def _status(self, reference: Any) -> int:
        try:
            status: int = self.ray.get(reference)
        except (self.ray.exceptions.TaskCancelledError, self.ray.exceptions.RayError):
            status = STOPPED_STATUS if self.asked_to_stop else 1  # it did not start, or its machine was lost
        return STOPPED_STATUS if self.asked_to_stop and status else status

    def stop(self) -> None:
        self.asked_to_stop = True
        for reference in self.running:
            self.ray.cancel(reference, force=False)

    def close(self) -> None:
        """Leave the cluster, or end what was started here."""
        self.ray.shutdown()


def run_words(words: list[str], log: str, folder: str, cores: int) -> int:
    """Run `burnish WORDS` in `folder`, as the local runner would -> exit status. Cancelled, it lets the run save."""
    signal.signal(signal.SIGINT, signal.default_int_handler)  # ignored where a shell started all in the background
    with Path(folder, log).open("ab") as output:
        process = subprocess.Popen(
            [*burnish_program(), *words],
            cwd=folder,
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=subprocess.STDOUT,
            env=cell_environment(cores),
            start_new_session=True,
            preexec_fn=dying_with_parent(),  # noqa: PLW1509 - nothing is locked in this worker
        )
        while True:
            try:
                while process.poll() is None:
                    time.sleep(POLL_SECONDS)  # `process.wait` would not be interrupted
                return process.returncode
            except KeyboardInterrupt:  # how Ray cancels
                process.terminate()
