"""The bundled recipes: complete runs that one copies and changes."""

from __future__ import annotations

from dataclasses import dataclass
from difflib import get_close_matches
from pathlib import Path

from ds_train.errors import ConfigError, InputError


@dataclass(frozen=True)
class BundledRecipe:
    """One file of ds_configs/recipes."""

    name: str
    path: Path

    @property
    def comments(self) -> list[str]:
        """The comment lines that the file opens with, without `#`."""
        lines = []
        for line in self.path.read_text(encoding="utf-8").splitlines():
            if not line.startswith("#"):
                break
            lines.append(line.lstrip("# ").rstrip())
        return lines

    @property
    def description(self) -> str:
        """What the recipe is for: the first paragraph of its comments."""
        return " ".join(self.comments[: (*self.comments, "").index("")])


def bundled_recipes(folder: Path) -> list[BundledRecipe]:
    """All recipes below `folder`, by name."""
    paths = sorted(folder.rglob("*.yaml"))
    return [BundledRecipe(str(path.relative_to(folder).with_suffix("")), path) for path in paths]


def find_recipe(folder: Path, name: str) -> BundledRecipe:
    """The recipe of that name. Raises ConfigError with the nearest one."""
    recipes = {recipe.name: recipe for recipe in bundled_recipes(folder)}
    wanted = name.removesuffix(".yaml")
    if wanted in recipes:
        return recipes[wanted]
    near = get_close_matches(wanted, recipes, n=1, cutoff=0.4)
    hint = f" Did you mean {near[0]}?" if near else ""
    names = ", ".join(recipes) or "none"
    raise ConfigError(f'recipe "{name}": no such bundled recipe; there are: {names}.{hint}')


def copy_recipe(recipe: BundledRecipe, destination: str | None) -> Path:
    """Write the recipe's text to `destination` (a file or folder), never over something.

    Raises InputError where that is not possible.
    """
    target = Path(destination or ".").expanduser()
    if target.is_dir():
        target = target / recipe.path.name
    try:
        with target.open("x", encoding="utf-8") as file:
            file.write(recipe.path.read_text(encoding="utf-8"))
    except FileExistsError:
        raise InputError(f"{target}: is there already; name another file.") from None
    except OSError as error:
        raise InputError(f"{target}: can't be written: {error.strerror}.") from None
    return target
