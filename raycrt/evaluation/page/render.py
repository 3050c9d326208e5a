"""Pages made of templates, with charts, style and scripts in the one file."""

from __future__ import annotations

import base64
import hashlib
import math
from collections.abc import Mapping
from datetime import UTC, datetime
from functools import cache
from importlib.metadata import version
from importlib.resources import files
from typing import Any

import altair
import vl_convert
from jinja2 import ChoiceLoader, Environment, PackageLoader, StrictUndefined
from markupsafe import Markup

from raycrt.evaluation.intervals import wilson
from raycrt.evaluation.page.charts import Chart
from raycrt.system.places.outputs import made, write_atomically
from raycrt.system.places.storage import Place

_HOME = "raycrt.evaluation.page"


def page(
    file: Place, template: str, drawn: Mapping[str, Chart], *, home: str = _HOME, **told: Any
) -> Place:
    """Write the `template` of the package `home`, filled in with what is `told` and the charts
    `drawn`; the file written."""
    made(file.parent)
    script = _script()
    text = (
        _templates(home)
        .get_template(template)
        .render(
            style=Markup(_own("page.css")),
            script=Markup(script),
            hash=_hash(script),
            charts=drawn,
            now=f"{datetime.now(UTC):%Y-%m-%d %H:%M} UTC",
            version=version("raycrt"),
            **told,
        )
    )
    write_atomically(file, text.encode())
    return file


@cache
def _script() -> str:
    """The script of every page, with Vega, Vega-Lite and Vega-Embed in it."""
    lite = ".".join(altair.SCHEMA_VERSION.strip("v").split(".")[:2])
    bundled = vl_convert.javascript_bundle(_own("page.js"), lite)
    return bundled.replace("</script", "<\\/script")


def _own(name: str) -> str:
    return (files(_HOME) / "templates" / name).read_text("utf-8")


@cache
def _templates(home: str) -> Environment:
    found = Environment(
        loader=ChoiceLoader([PackageLoader(home), PackageLoader(_HOME)]),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    found.filters |= {"percent": _percent, "radius": _radius, "order": _order}
    found.filters |= {"cell": _cell, "share": _share, "wilson": wilson}
    return found


def _hash(script: str) -> str:
    """A script as the page's policy names it."""
    return "sha256-" + base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()


def _percent(share: float) -> str:
    """A share as text, in percent."""
    return f"{100 * share:.2f} %"


def _radius(radius: float) -> str:
    return "∞" if math.isinf(radius) else f"{radius:.4g}"


def _cell(text: str) -> str:
    """A cell of a table of text, with numbers that are not whole cut to three digits."""
    number = _number(text)
    if number is None:
        return text
    return f"{number:.15g}" if number.is_integer() else f"{number:.3g}"


def _share(text: str) -> str:
    """A cell of a table of text that is a share, in percent."""
    number = _number(text)
    return text if number is None else f"{100 * number:.1f} %"


def _order(value: object) -> str:
    """What a cell is sorted by: a number, or else its text."""
    number = _number(str(value))
    return str(value) if number is None else str(number).replace("inf", "Infinity")


def _number(text: str) -> float | None:
    try:
        return float(text)
    except ValueError:
        return None
