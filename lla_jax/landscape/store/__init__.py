"""Chunk stores: landscapes that survive a kill, shared by any number of processes."""
