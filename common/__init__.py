"""What every room needs and none owns: errors, files, options, the machine. Imports nothing of the project."""
