"""`fipo train` and `fipo test-reward`: recipes, data, rewards, models and whole runs. Needs the extra `train`."""
