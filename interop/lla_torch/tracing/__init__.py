"""torch.export of a module, and what it must not lose."""
