"""What can be typed? One module a command, arguments in, an exit status out."""
