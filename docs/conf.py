"""Settings of the documentation: ``sphinx-build -W -b html docs docs/_build``."""

import re
from importlib.metadata import version as version_of

project = "skoptim"
author = "The skoptim developers"
copyright = author
version = release = version_of("skoptim")

extensions = [
    "sphinx.ext.autodoc",
    "sphinx.ext.autosummary",
    "sphinx.ext.mathjax",
    "numpydoc",
    "myst_parser",
]
exclude_patterns = ["_build"]
templates_path = ["_templates"]
html_theme = "furo"
html_title = "skoptim"

myst_enable_extensions = ["colon_fence", "dollarmath"]
myst_heading_anchors = 3

autosummary_generate = True
autodoc_typehints = "none"
default_role = "code"

numpydoc_show_class_members = False
# Errors that a reader would trip over; the build treats warnings as errors.
numpydoc_validation_checks = {"GL01", "GL03", "PR02", "PR10"}


def skip_inherited_from_scikit_learn(app, what, name, obj, skip, options):
    """Leave out what scikit-learn documents itself, as get_params, score and set_fit_request."""
    module = getattr(obj, "__module__", None) or ""
    return True if module.startswith("sklearn.") or name.endswith("_request") else None


def escape_fitted_names(app, what, name, obj, options, lines):
    """Keep reStructuredText from taking `n_features_in_` in a type for a link."""
    lines[:] = [re.sub(r"(?<= : )(.*\w)_([,)])", r"\1\\_\2", line) for line in lines]


def setup(app):
    """Connect the handlers above; docstrings are changed before numpydoc reads them."""
    app.connect("autodoc-skip-member", skip_inherited_from_scikit_learn)
    app.connect("autodoc-process-docstring", escape_fitted_names, priority=100)
