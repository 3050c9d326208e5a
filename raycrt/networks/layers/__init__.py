"""The affine layers of a network, as maps between flat vectors."""
