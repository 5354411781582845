"""Tiny models, made-up data and contract suites for tests. Nothing in Chainrule imports this."""
