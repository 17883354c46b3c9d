"""Does FIPO learn better, and when? The experiments behind docs/evidence.md; `make evidence` runs them."""
