"""A run: recipe, folder, stages, conversion, winners, report."""
