"""Fourier integral attention: a query weighs keys by a product of sinc functions of how far apart they are.

One idea a file: `bandwidth` has what the forms learn, `integral` and `radial` are the forms on tiles of any length,
`quartic` is the form on torch's fused kernels; `sinc` is the score in plain torch, `native` the same in C++, `gpu` is
whole attention in Triton, and `choice` says which of them computes.
"""

from zoo_kernels.fourier.integral import FourierIntegral
from zoo_kernels.fourier.quartic import FourierQuartic
from zoo_kernels.fourier.radial import FourierRadial

__all__ = ["FourierIntegral", "FourierQuartic", "FourierRadial"]
