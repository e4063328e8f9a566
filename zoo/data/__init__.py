"""What models are fed: `Text` in blocks of tokens and labelled `Images`, each with an embedded default."""

from zoo.data.text import Text

__all__ = ["Text"]
