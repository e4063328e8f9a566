"""What happens beside training: how fast it goes, what it survives, what it leaves. One file an idea."""

from zoo.callbacks.averaging import Averaging
from zoo.callbacks.nonfinite import NonFinite
from zoo.callbacks.predictions import Predictions
from zoo.callbacks.preemption import Preemption
from zoo.callbacks.progress import Progress
from zoo.callbacks.redundancy import HeadRedundancy
from zoo.callbacks.release import Release
from zoo.callbacks.throughput import Throughput

__all__ = [
    "Averaging",
    "HeadRedundancy",
    "NonFinite",
    "Predictions",
    "Preemption",
    "Progress",
    "Release",
    "Throughput",
]
