"""Bundles: one file with a model, its certificates and what they rest on (docs/bundle.md)."""
