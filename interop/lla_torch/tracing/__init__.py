"""Exports a module by torch.export without losing gradients silently, and records its random draws."""
