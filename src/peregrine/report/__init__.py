"""What people see: the live view, the table, the one-file page, the scripts that reproduce."""
