"""What a model is asked and what it says, watched: drift, surges, accuracy, and rows worth labelling."""
