"""Sphinx configuration of the documentation: `make docs` builds it into docs/_build/html.

Sphinx with furo, because it is what Python projects have kept up for fifteen years, reads the docstrings of the API itself, and fails
the build on a broken reference. Mathematics becomes MathML when the site is built, so that pages need no script and no network.
"""

from __future__ import annotations

import sys
from pathlib import Path

HERE = Path(__file__).parent
sys.path[:0] = [str(HERE / "_ext"), str(HERE.parent)]

import rlx  # noqa: E402

project, author, copyright = "rlx", "the rlx authors", "the rlx authors"
release = version = rlx.__version__
extensions = ["myst_parser", "sphinx.ext.autodoc", "sphinx.ext.napoleon", "sphinx.ext.viewcode", "mathml", "from_code"]
myst_enable_extensions = ["dollarmath", "colon_fence", "deflist"]
myst_heading_anchors = 3
exclude_patterns = ["_build", "examples"]
suppress_warnings = ["myst.header"]

autodoc_typehints = "description"
autodoc_member_order = "bysource"
autodoc_mock_imports = ["pandas"]

html_theme = "furo"
html_title = f"rlx {release}"
html_theme_options = {"navigation_with_keys": True}
html_copy_source = False
