"""The page of a search: `study.html`."""
