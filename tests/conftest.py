"""Settings for the whole suite."""

import os

from hypothesis import settings

# The same examples in every run of continuous integration; fresh ones at a developer's desk.
settings.register_profile("ci", derandomize=True)
settings.load_profile("ci" if os.environ.get("CI") else "default")
