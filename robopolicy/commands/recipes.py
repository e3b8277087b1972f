"""robopolicy recipes: the named training runs."""

from robopolicy.recipes import RECIPES
from robopolicy.recipes_locomotion import LOCOMOTION


def run(arguments: list[str]) -> None:
    """Prints every recipe with what it is for."""
    listed = [(n, r.about) for n, r in RECIPES.items()] + [(n, r.about) for n, r in LOCOMOTION.items()]
    for name, about in listed:
        print(f"{name:<36}{about}")
