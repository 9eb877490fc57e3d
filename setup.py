"""Reads the dependencies from requirements.txt, so that their bounds stand in one place.

pyproject.toml alone cannot: it refuses the ``-e .`` line that makes
``pip install -r requirements.txt`` install the project itself.
"""

from pathlib import Path

from setuptools import setup

lines = Path(__file__).with_name("requirements.txt").read_text(encoding="utf-8").splitlines()
setup(install_requires=[line for line in map(str.strip, lines) if line and line[0] not in "#-"])
