"""Proof that both sides compute the same."""
