"""What every command shares: exit codes, terminal output, progress bars."""
