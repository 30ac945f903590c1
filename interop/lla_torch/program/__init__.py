"""The converted graph and its operators; imports no torch."""
