"""Losses along paths and between them: at trees, in planes, on curves; barriers."""
