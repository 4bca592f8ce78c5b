"""An autoscaler in Python: workers in proportion to the sequences in the node.

The number follows the mean of the last intervals on the way up and the peak of the
whole window on the way down; with nothing in the whole window, no worker is wanted.
All of it follows from the window, so nothing is kept between calls.
"""

import math
from typing import Optional

from componentize_py_types import Err
from wit_world import exports
from wit_world.exports import autoscaler, lifecycle
from wit_world.imports import config

# Intervals that a rise has to last, so that one burst starts no worker.
RECENT = 2

DEFAULT_PER_WORKER = 16


def desired(window: autoscaler.Window, replicas: autoscaler.Replicas, per_worker: int) -> tuple[int, str]:
    """Workers that are wanted, and why."""
    sequences = [waiting + running for waiting, running in zip(window.waiting, window.running)]
    if not any(sequences) and not any(window.arrivals):
        return 0, "nothing to do in the whole window"
    recent = sequences[-RECENT:]
    now = math.ceil(sum(recent) / len(recent) / per_worker)
    present = replicas.ready + replicas.starting
    if now > present:
        return now, f"{sum(recent) / len(recent):.1f} sequences lately, {per_worker} for each worker"
    peak = math.ceil(max(sequences) / per_worker)
    if peak < present:
        return max(peak, 1), f"never more than {max(sequences)} sequences in the window"
    return max(present, 1), f"{sequences[-1]} sequences, {per_worker} for each worker"


class Autoscaler(exports.Autoscaler):
    def evaluate(self, window: autoscaler.Window, replicas: autoscaler.Replicas) -> Optional[autoscaler.Target]:
        if not window.arrivals:
            return None
        workers, reason = desired(window, replicas, per_worker())
        workers = min(max(workers, replicas.min), max(replicas.max, replicas.min))
        return autoscaler.Target(workers, reason, 2000)


class Lifecycle(exports.Lifecycle):
    def init(self, saved: Optional[bytes]) -> lifecycle.Info:
        per_worker()
        return lifecycle.Info("python-autoscaler", "0.1.0")

    def save(self) -> bytes:
        return b""


def per_worker() -> int:
    text = config.get("target-sequences")
    if text is None:
        return DEFAULT_PER_WORKER
    if not text.strip().isdigit() or int(text) == 0:
        raise Err(f"target-sequences: '{text}' is no number from 1 up")
    return int(text)
