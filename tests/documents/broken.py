"""Features that can be broken on purpose, to see which rows notice."""

FEATURES = {}
