"""What is there to choose from, and whether it will run here: recipes, keys, the machine."""
