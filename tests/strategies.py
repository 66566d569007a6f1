"""Values that a registry must accept: those of `registry.testing`."""

from registry.testing.values import HOSTILE, instants, json_text, json_values, names, sizes, states, terminal_states

__all__ = ["HOSTILE", "instants", "json_text", "json_values", "names", "sizes", "states", "terminal_states"]
