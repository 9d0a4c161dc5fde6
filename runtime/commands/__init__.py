"""One file per command of `lm2`; imported only when that command runs."""
