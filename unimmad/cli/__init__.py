"""The commands: one file a command, each with ``main(argv)``. Nothing imports them."""
