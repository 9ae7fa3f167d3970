"""Every setting of a run, checked; the flags made from them; recipes."""
