"""Training on many workers of Ray Train."""
