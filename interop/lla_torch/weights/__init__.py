"""Names, checkpoints and optimizer moments as Flax trees."""
