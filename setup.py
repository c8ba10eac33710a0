"""The packages of the wheel: all of vse, and the configs, which a checkout has beside it; all else is in pyproject.toml."""

from setuptools import find_packages, setup

setup(packages=[*find_packages(include=["vse", "vse.*"]), "vse.configs"], package_dir={"vse.configs": "configs"})
