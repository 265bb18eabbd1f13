"""The builder of the documentation starts; its pages are in the checkout."""

import subprocess

import material

assert material.__file__
subprocess.run(["mkdocs", "--version"], check=True, stdout=subprocess.DEVNULL)
