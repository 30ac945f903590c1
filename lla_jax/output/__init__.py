"""Results as files, words and pictures."""
