"""Artifacts behind HTTP: one thread runs the models, in batches of rows of all requests at hand."""
