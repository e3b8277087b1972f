"""What `colcon build --base-paths launch` installs. The wheel of the library ships the same files (pyproject.toml)."""

from pathlib import Path

from setuptools import setup

PACKAGE = "robopolicy"
HERE = Path(__file__).resolve().parent
# Folders here and where their files go under the installation's prefix.
PLACES = {
    "resource": "share/ament_index/resource_index/packages",
    "launch": f"share/{PACKAGE}/launch",
    "launch/robots": f"share/{PACKAGE}/launch/robots",
    "config": f"share/{PACKAGE}/config",
    "lib/robopolicy": f"lib/{PACKAGE}",
}


def data_files() -> list[tuple[str, list[str]]]:
    """Destination folders and the files of each, by paths relative to this file."""
    found = [(f"share/{PACKAGE}", ["package.xml"])]
    for folder, place in PLACES.items():
        files = sorted(str(p.relative_to(HERE)) for p in (HERE / folder).iterdir() if p.is_file())
        found.append((place, files))
    return found


if __name__ == "__main__":
    setup(
        name=PACKAGE,
        version="0.1.0",
        packages=[],
        data_files=data_files(),
        zip_safe=False,
        maintainer="robopolicy maintainers",
        maintainer_email="maintainers@robopolicy.example",
        description="Launch files, parameters and node stubs of robopolicy",
        license="Apache-2.0",
    )
