"""More than one training: what several runs together tell that one does not."""
