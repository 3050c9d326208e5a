"""Search with Ray Tune and Optuna for the configuration with the highest certified accuracy."""
