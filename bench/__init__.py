"""Latency, accuracy, bytes and memory of bundles, and the report."""
