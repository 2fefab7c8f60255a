"""A conversation with one model or two in the terminal: input, commands, history, and what is shown."""
