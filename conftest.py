"""Read by pytest also when it is given notebooks alone: their outputs are compared within a tolerance."""

pytest_plugins = ["tolerance"]
