"""Recipes are data: all of them load, every value can be overridden, nonsense is named."""

from __future__ import annotations

import json

import pytest

from vitsense.errors import SchemaVersionError, UserInputError
from vitsense.qat.recipes import load_recipe, recipe_from_json, recipe_names


def test_the_promised_recipes_are_there_and_say_where_they_come_from() -> None:
    assert recipe_names() == ["dampen", "demo", "freeze", "gplq", "lsq", "lsq+", "ofq", "vvtq"]
    for name in recipe_names():
        recipe = load_recipe(name)
        assert recipe.name == name
        assert recipe.about
        assert recipe.source


def test_a_recipe_survives_json() -> None:
    recipe = load_recipe("vvtq", {"crop_scale": "0.5,1", "flip": "0.25"})
    again = recipe_from_json(json.loads(json.dumps(recipe.to_json())), "here")
    assert again == recipe
    assert recipe.differing(load_recipe("vvtq").to_json()) == ["crop_scale", "flip"]


def test_values_are_taken_from_the_command_line() -> None:
    values = {"lr": "1e-3", "batch": "32", "crops": "2", "regularizer": "none", "flip": "none"}
    recipe = load_recipe("vvtq", values)
    assert (recipe.lr, recipe.batch, recipe.crops) == (1e-3, 32, 2)
    assert (recipe.regularizer, recipe.flip) == ("none", None)


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"learning_rate": "1"}, "no value 'learning_rate'"),
        ({"strenght": "1"}, "Near: strength"),
        ({"lr": "fast"}, "lr is 'fast': write a number"),
        ({"lr": "-1"}, "lr is -1.0"),
        ({"lr": "0"}, "lr is 0: nothing would be learned"),
        ({"lr": "nan"}, "lr is nan"),
        ({"batch": "1.5"}, "write a whole number"),
        ({"batch": "30", "crops": "4"}, "multiple of crops"),
        ({"teacher": "big"}, "use one of self, none"),
        ({"teacher": "none"}, "nothing to learn from"),
        ({"hard": "2"}, "at most 1"),
        ({"crop_scale": "1"}, "two numbers"),
        ({"epochs": "0"}, "nothing would be trained"),
    ],
)
def test_a_wrong_value_is_named(values: dict[str, str], message: str) -> None:
    with pytest.raises(UserInputError, match=message):
        load_recipe("demo", values)


def test_an_unknown_recipe_lists_those_that_are_there() -> None:
    with pytest.raises(UserInputError, match="no recipe 'best'; there are dampen, demo"):
        load_recipe("best")


def test_a_newer_recipe_is_refused() -> None:
    data = load_recipe("demo").to_json() | {"schema": "vitsense.recipe/9"}
    with pytest.raises(SchemaVersionError, match="recipe/9"):
        recipe_from_json(data, "file.json")
