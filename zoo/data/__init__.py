"""What models are fed: `Text` in blocks of tokens and labelled `Images`, each with an embedded default."""

from zoo.data.images import Images
from zoo.data.text import Text

__all__ = ["Images", "Text"]
