"""Keeps landscapes in folders that survive a kill and that any number of processes share: chunk stores."""
