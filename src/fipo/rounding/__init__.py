"""Signal or rounding: how much of a token's weight is what an update did, and how much the precision of the forward."""
