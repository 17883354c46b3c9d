"""Plugins for training engines: they translate an engine's layout and call fipo.core."""
