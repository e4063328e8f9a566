"""First-party position encodings, one file each; they reach the models by entry point, like anybody else's."""
