"""Metrics: pure functions of arrays; no torch and no files."""
