"""What verbs share: argparse whose errors are ours, the device that is asked for, zoo's log lines on stderr."""

from __future__ import annotations

import argparse
import logging
from typing import Any

from zoo.errors import ZooError


class Arguments(argparse.ArgumentParser):
    """argparse, whose errors are ours."""

    def error(self, message: str) -> Any:
        raise ZooError(f"{message}. Try:  {self.prog} --help")


def place(name: str) -> str:
    """The device of that name, or a sentence where there is none."""
    import torch

    try:
        torch.empty(1, device=torch.device(name))
    except (RuntimeError, AssertionError):
        raise ZooError(f"There is no device {name} here. Try:  --device cpu") from None
    return name


def speak() -> None:
    """Let zoo's own log lines reach stderr, as plain lines."""
    log = logging.getLogger("zoo")
    if not log.handlers:
        handler = logging.StreamHandler()
        handler.setFormatter(logging.Formatter("%(message)s"))
        log.addHandler(handler)
    log.setLevel(logging.INFO)
    log.propagate = False
