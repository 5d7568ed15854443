"""piggybank: a self-hosted wallet backend that grows by flipping a profile."""

__version__ = "0.1.0"
