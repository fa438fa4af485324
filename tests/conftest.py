"""Settings that must be in place before scipy is imported."""

import os

# Lets scikit-learn's array-API checks run instead of being skipped.
os.environ.setdefault("SCIPY_ARRAY_API", "1")
