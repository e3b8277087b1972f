"""robopolicy recipes: the named training runs."""

from robopolicy.recipes import RECIPES


def run(arguments: list[str]) -> None:
    """Prints every recipe with what it is for."""
    for name, recipe in RECIPES.items():
        print(f"{name:<36}{recipe.about}")
