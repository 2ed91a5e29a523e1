"""The demonstration: a scan whose answer is known, and the comparison with it."""
