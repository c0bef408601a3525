"""The one exception that means "the user can fix this"."""


class UserError(Exception):
    """A user's mistake: one sentence that names what is wrong, and one that says what to do.

    The commands print both and exit with code 2, without a traceback. `what` may name a file, a
    field or a column, never a patient's value.
    """

    def __init__(self, what: str, remedy: str) -> None:
        super().__init__(f"{what} {remedy}")
        self.what = what
        self.remedy = remedy
