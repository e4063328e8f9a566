"""zoo: Transformers whose position encodings and attention kernels are plugins."""

__version__ = "0.1.0"
