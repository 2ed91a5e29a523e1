"""Demonstrates the pipeline with a scan whose answer is known, and compares the result with it."""
