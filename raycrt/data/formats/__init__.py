"""Files of numbers that are read some rows at a time."""
