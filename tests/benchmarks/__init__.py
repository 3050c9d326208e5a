"""Measurements as ratios within one run; each program writes its results as JSON."""

import json
from pathlib import Path
from typing import Any


def write(results: dict[str, Any], out: Path) -> None:
    """Print the results and write them to a file."""
    text = json.dumps(results, indent=2)
    out.parent.mkdir(parents=True, exist_ok=True)
    out.write_text(text)
    print(text)
