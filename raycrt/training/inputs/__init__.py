"""Rows on their way into a step: batches, and random maps of images."""
