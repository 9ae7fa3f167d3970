"""`bench`, from the plan of what is measured down to the workers that measure it."""
