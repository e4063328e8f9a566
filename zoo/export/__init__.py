"""Giving a checkpoint to programs that know nothing of zoo: `zoo export CKPT --to hf`.

`rope` says an encoding in transformers' words, `config` a network, `write` makes the folder, and `gate` has it read by
ourselves and by transformers before it gets its name: what does not come back the same is not published.
"""
