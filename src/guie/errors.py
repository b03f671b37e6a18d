"""The one exception a person can cause and mend."""


class UserError(Exception):
    """One line that names the key or file, the value received and what is accepted.

    Entry points print it without a traceback and exit with code 2 (a traceback with `GUIE_DEBUG=1`).
    """
