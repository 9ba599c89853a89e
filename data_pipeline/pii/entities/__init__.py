"""Names and places: an optional finder, a model in a local folder."""
