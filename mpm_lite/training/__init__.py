"""Training: one loop on Accelerate, gradients of large batches, sharding, checkpoints, what a run costs and what fits into memory."""
