"""How many weights a model has, counted from its config.json: family by family, by when a step reads them."""
