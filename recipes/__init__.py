"""One YAML per data set: where its data is, its features, its model, its training."""

from recipes.recipe import Recipe, read_recipe

__all__ = ["Recipe", "read_recipe"]
