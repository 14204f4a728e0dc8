"""The one exception type for mistakes that a user can put right."""


class UserError(ValueError):
    """A mistake of the user's: one line saying what came, what was expected and the way out.

    Commands print it as ``error: ...`` and exit with code 2 (`tfrecords.command.run`); library
    callers may catch it as the ``ValueError`` it is.

    Example:
        >>> raise UserError("--vocab_size is 3; it must be at least 64; pass a larger one")
        Traceback (most recent call last):
        tfrecords.errors.UserError: --vocab_size is 3; it must be at least 64; pass a larger one
    """
