"""The one exception for a user's mistake.

Its text is a single line that says what is wrong, where, and what to do. The command line prints it and exits with code 2;
every other exception is a defect of ours and keeps its traceback.
"""


class InputError(ValueError):
    """Bad input: a missing dataset, a wrong schema, a corrupt record, an incompatible checkpoint."""
