"""From vectors to a model: initialisation, batches, the loss, the loop, checkpoints."""
