"""The border to Ray: the only place in `raycrt` that imports it."""
