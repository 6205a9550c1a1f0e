"""The only place that reads the world outside the lake."""
