"""Errors that a user can correct: in a config, or in a working directory."""


class ConfigError(ValueError):
  """A configuration that cannot be run; the message names the field."""


class WorkdirError(ValueError):
  """A working directory that belongs to another configuration."""
