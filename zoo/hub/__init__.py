"""Checkpoints that other programs write and read: Hugging Face's folders, and GGUF files.

A folder says in `config.json` what network it holds; `families` knows the networks, `rotary` what is said of positions,
`layout` which tensor of theirs is which rows of ours. Nothing is converted on the disk, and nothing is passed over that
is not understood: an unknown key may change numbers.
"""
