"""Labelled rows: read, clean, find the fields, cut into splits, check. Knows nothing of models."""
