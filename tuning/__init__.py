"""Search: Ray Tune and Optuna look for the configuration of the highest certified accuracy."""
