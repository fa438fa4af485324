"""Settings of the documentation: ``sphinx-build -W -b html docs docs/_build``."""

from importlib.metadata import version as version_of

project = "skoptim"
author = "The skoptim developers"
copyright = author  # noqa: A001
version = release = version_of("skoptim")

extensions = [
    "sphinx.ext.autodoc",
    "sphinx.ext.autosummary",
    "sphinx.ext.mathjax",
    "numpydoc",
    "myst_parser",
]
exclude_patterns = ["_build"]
html_theme = "furo"
html_title = "skoptim"

myst_enable_extensions = ["colon_fence", "dollarmath"]
myst_heading_anchors = 3

autosummary_generate = True
autodoc_typehints = "none"
autodoc_default_options = {"members": True, "inherited-members": "BaseEstimator"}
default_role = "code"

numpydoc_show_class_members = False
# Errors that a reader would trip over; the build treats warnings as errors.
numpydoc_validation_checks = {"GL01", "GL02", "GL03", "PR01", "PR02", "PR03", "PR10", "RT01"}
numpydoc_validation_exclude = {
    r"\._[a-zA-Z]",  # private
    # Written by scikit-learn: metadata routing and callbacks.
    r"\.(get|set)_\w+$",
    r"\.score$",
}
