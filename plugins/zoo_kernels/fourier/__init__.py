"""Fourier integral attention: a key weighs by the product of sinc(R (q - k))^p over its channels."""
