"""Trains curves between two solutions: their ends, batches, gradients, optimizers and stores."""
