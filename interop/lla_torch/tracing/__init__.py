"""torch.export of a module without silent losses, and the recording of its random draws."""
