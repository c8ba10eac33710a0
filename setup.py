"""The packages of the wheel: all of vse, and the configs, which a checkout has beside it."""

from setuptools import find_packages, setup

setup(packages=[*find_packages(include=["vse", "vse.*"]), "vse.configs"], package_dir={"vse.configs": "configs"})
