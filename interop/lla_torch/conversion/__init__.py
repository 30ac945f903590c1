"""From an exported graph to a pure function."""
