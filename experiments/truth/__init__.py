"""The true credit of every token, and how well credit signals point at it. docs/credit_truth.md says what and why."""
