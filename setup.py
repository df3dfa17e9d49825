"""Packaging. The wheel contains the guest image recipes of images/ as the package vcluster.recipes."""

from pathlib import Path

from setuptools import find_packages, setup

ROOT = Path(__file__).parent
RECIPES = [str(path.relative_to(ROOT / "images")) for path in (ROOT / "images").rglob("*") if path.is_file()]

setup(
    name="vcluster",
    version="0.1.0",
    description="Create MPI clusters of virtual machines whose traffic crosses one observable switch",
    long_description=(ROOT / "README.md").read_text() if (ROOT / "README.md").exists() else "",
    long_description_content_type="text/markdown",
    python_requires=">=3.11",
    packages=[*find_packages(include=["vcluster", "vcluster.*"]), "vcluster.recipes"],
    package_dir={"vcluster.recipes": "images"},
    package_data={"vcluster": ["py.typed"], "vcluster.recipes": RECIPES},
    data_files=[("share/vcluster", ["config.template"])],
    entry_points={"console_scripts": ["vcluster=vcluster.cli.main:run"]},
    install_requires=[
        "ClusterShell>=1.9",
        "cattrs>=23.1",
        "click>=8.1",
        "cryptography>=41",
        "libvirt-python>=8.0",
        "paramiko>=3.4",
        "pycdlib>=1.14",
        "pyroute2>=0.7.12",
        "termcolor>=2.3",
        "tqdm>=4.66",
    ],
    extras_require={
        "test": [
            "codespell>=2.2",
            "hypothesis>=6",
            "jsonschema>=4.18",
            "mypy>=1.8",
            "pyte>=0.8",
            "pytest>=8",
            "pytest-xdist>=3.7",
            "PyYAML>=6",
            "ruff>=0.4",
            "scapy>=2.6",
        ],
    },
)
