"""Errors that a user can mend: of a config, and of a working directory."""


class ConfigError(ValueError):
  """A configuration that cannot be run; the message names the field."""


class WorkdirError(ValueError):
  """A working directory that belongs to another configuration."""
