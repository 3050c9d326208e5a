"""Data sets of which some rows are read at a time."""
