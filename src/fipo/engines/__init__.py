"""Plugins for trainers of other people: each translates one engine's layout, calls `fipo.core` and forks nothing."""
