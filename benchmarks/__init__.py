"""What ``tools/benchmark.py`` measures, one module a subcommand.

Each module has ``HELP`` (one line), ``add_arguments(parser)`` and ``run(arguments) -> str`` (the table to print).
"""
