"""Recipes: YAML with ``extends:`` and one-off overrides, read into frozen pydantic models."""

from __future__ import annotations

import difflib
from collections.abc import Mapping, Sequence
from importlib import resources
from pathlib import Path
from typing import Any, TypeGuard, TypeVar, get_args

import yaml
from pydantic import BaseModel, ValidationError

from anlage.errors import RecipeError

Config = TypeVar("Config", bound=BaseModel)
Tree = dict[str, Any]
MAX_EXTENDS = 8
SIZE = "size"  # names a set of fields (model: {size: vit-s16})
MOST_SHOWN = 100  # characters of a wrong value


def recipe_names() -> tuple[str, ...]:
    """Names of the recipes that come with the package, sorted."""
    folder = resources.files("anlage.recipes")
    return tuple(sorted(f.name[:-5] for f in folder.iterdir() if f.name.endswith(".yaml")))


def load_recipe(
    recipe: str | Path, config: type[Config], *, overrides: Sequence[str] = ()
) -> Config:
    """Read a recipe, follow its ``extends:``, apply overrides, check every key and value.

    Args:
        recipe: Name of a recipe of the package, or path of a YAML file.
        config: The frozen pydantic model the recipe must fill.
        overrides: Changes as ``dotted.key=value``, the value in YAML (``optimizer.peak_lr=1e-4``);
            a ``size`` before the others, and the last one of a key wins.

    Returns:
        The checked configuration.

    Raises:
        RecipeError: If the recipe is unknown or not YAML, or a key is unknown (the nearest known
            one is named), missing, of the wrong type or contradictory.
    """
    tree = _read(recipe, depth=0)
    changes = [_as_tree(str(recipe), override) for override in overrides]
    # a size begins its section anew, so it comes before the fields that stand beside it
    for change in sorted(changes, key=lambda tree: not _is_a_size(tree)):
        tree = merged(tree, change)
    return checked(tree, config, name=str(recipe))


def checked(tree: Mapping[str, Any], config: type[Config], *, name: str) -> Config:
    """Turn a nested mapping into a config, or say in plain words what is wrong with it."""
    try:
        return config.model_validate(tree)
    except ValidationError as error:
        lines = [_explain(problem, config) for problem in error.errors()]
        raise RecipeError(name, "; ".join(lines)) from error


def merged(below: Tree, above: Tree) -> Tree:
    """``below`` with the leaves of ``above`` in their place.

    Sections merge; all else replaces, also a mapping whose keys are numbers (``{0.5: 1.0}``): that
    is one value, which could otherwise only grow. A section that names a ``size`` begins anew, for
    the fields below it are those of another size; ``size: null`` names none.
    """
    result = dict(below)
    for key, value in above.items():
        old = result.get(key)
        if _is_section(old) and _is_section(value) and value.get(SIZE) is None:
            result[key] = merged(old, value)
        else:
            result[key] = value
    return result


def _is_section(value: Any) -> TypeGuard[Tree]:  # noqa: ANN401 - anything YAML can hold
    return isinstance(value, dict) and all(isinstance(key, str) for key in value)


def _read(recipe: str | Path, *, depth: int) -> Tree:
    name = str(recipe)
    if depth > MAX_EXTENDS:
        raise RecipeError(name, f"extends more than {MAX_EXTENDS} recipes deep; is it a circle?")
    try:
        tree = yaml.safe_load(_text(recipe))
    except yaml.YAMLError as error:
        raise RecipeError(name, f"is not YAML: {error}") from error
    if not isinstance(tree, dict):
        raise RecipeError(name, f"needs keys and values; got {type(tree).__name__}")
    parent = tree.pop("extends", None)
    if parent is None:
        return tree
    beside = Path(recipe).parent / f"{parent}.yaml"
    base = beside if Path(recipe).is_file() and beside.is_file() else parent
    return merged(_read(base, depth=depth + 1), tree)


def _text(recipe: str | Path) -> str:
    path = Path(recipe)
    if path.is_file():
        return path.read_text(encoding="utf-8")
    shipped = resources.files("anlage.recipes") / f"{recipe}.yaml"
    if str(recipe) in recipe_names():
        return shipped.read_text(encoding="utf-8")
    known = ", ".join(recipe_names())
    raise RecipeError(str(recipe), f"no such recipe file, and the known recipes are {known}")


def _as_tree(recipe: str, override: str) -> Tree:
    key, equals, value = override.partition("=")
    if not equals or not key:
        raise RecipeError(recipe, f"an override reads dotted.key=value; got {override!r}")
    try:
        tree: Any = yaml.safe_load(value)
    except yaml.YAMLError as error:
        raise RecipeError(recipe, f"override {override!r} has no YAML value: {error}") from error
    for part in reversed(key.split(".")):
        tree = {part: tree}
    return dict(tree)


def _is_a_size(change: Tree) -> bool:
    """Whether an override sets a ``size`` below the top."""
    key, value = next(iter(change.items()))
    depth = 0
    while isinstance(value, dict) and len(value) == 1:
        key, value = next(iter(value.items()))
        depth += 1
    return bool(depth) and key == SIZE and value is not None


def _explain(problem: Mapping[str, Any], config: type[BaseModel]) -> str:
    """One pydantic problem in the words of a recipe's author."""
    parts = [str(part) for part in problem["loc"]]  # one in brackets tells which of two kinds
    where = ".".join(part for part in parts if not part.startswith(("(", "["))) or "the recipe"
    if problem["type"] == "extra_forbidden":
        known = _known_keys(config)
        near = difflib.get_close_matches(where, known, n=1, cutoff=0.5)
        leaf = difflib.get_close_matches(
            where.rsplit(".", 1)[-1], [k.rsplit(".", 1)[-1] for k in known], n=1
        )
        hint = next((k for k in known if leaf and k.rsplit(".", 1)[-1] == leaf[0]), None)
        nearest = near[0] if near else hint
        return f"unknown key {where!r}" + (f"; did you mean {nearest!r}?" if nearest else "")
    if problem["type"] == "missing":
        return f"needs the key {where!r}"
    reason = str(problem["msg"]).removeprefix("Value error, ")
    got = repr(problem.get("input"))
    shown = got if len(got) <= MOST_SHOWN else f"{got[:MOST_SHOWN]} ..."  # it may be all there is
    return f"{where}: {reason}; got {shown}"


def _known_keys(config: type[BaseModel], prefix: str = "") -> list[str]:
    keys: list[str] = []
    for name, field in config.model_fields.items():
        keys.append(prefix + name)
        for inner in (
            field.annotation,
            *get_args(field.annotation),
        ):  # a section or one of a union
            if isinstance(inner, type) and issubclass(inner, BaseModel):
                keys.extend(_known_keys(inner, f"{prefix}{name}."))
    return keys
