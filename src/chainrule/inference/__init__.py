"""One interface to every artifact: rows in, predictions out, in streams."""
