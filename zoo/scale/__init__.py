"""From one process to many: what it takes to train one model on several processes."""
