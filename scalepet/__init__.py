"""scalepet: train very large frozen models through very few parameters, on DeepSpeed."""

__version__ = "0.1.0"
