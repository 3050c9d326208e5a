"""The documentation site: `make docs` builds these pages into docs/_build/html."""

import sys
from importlib.metadata import version as installed
from pathlib import Path

HERE = Path(__file__).parent
sys.path[:0] = [str(HERE / "_ext"), str(HERE.parent)]

project = "raycrt"
release = installed("raycrt")
copyright = "the authors of raycrt"

extensions = ["myst_parser", "sphinx_copybutton", "generated"]
exclude_patterns = ["_build", "package", "results"]
myst_enable_extensions = ["colon_fence"]
# Every heading that pages link to has an anchor, as on code hosts.
myst_heading_anchors = 3
# Indented formulas and outputs are no program.
highlight_language = "text"
# Two dashes begin an option.
smartquotes = False

html_theme = "furo"
html_title = "raycrt"
html_copy_source = False
html_show_copyright = False
html_show_sphinx = False
html_static_path = ["_static"]
html_css_files = ["site.css"]
