"""What happens beside training: how fast it goes, what it leaves. One file an idea."""

from zoo.callbacks.predictions import Predictions
from zoo.callbacks.release import Release
from zoo.callbacks.throughput import Throughput

__all__ = ["Predictions", "Release", "Throughput"]
