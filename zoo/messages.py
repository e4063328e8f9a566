"""What the parser says when a recipe or a flag does not fit: a sentence instead of a nest of unions."""

from __future__ import annotations

from typing import Any, NoReturn

from lightning.pytorch.cli import LightningArgumentParser


class Parser(LightningArgumentParser):
    """LightningCLI's parser, its errors in one or two sentences."""

    def error(self, message: str, ex: Exception | None = None) -> NoReturn:
        raise SystemExit(f"RAW {message}")

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
