"""torch.export of a module, without the silent losses that it would have: stop-gradients, dropout, random draws."""
