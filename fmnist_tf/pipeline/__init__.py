"""One run, from settings to DONE.json, and a saved run read back."""
