"""What a scheduler has done so far, as plain numbers: its thread writes them, and whoever wants to know reads them."""

import collections


class Counts:
    """Numbers that only grow. rows: {rows of a step: how many steps had so many}. read: tokens of prompts that were
    computed.
    """

    def __init__(self):
        self.rows, self.read = collections.Counter(), 0

    @property
    def steps(self):
        """How many times a token was drawn for each row that was there."""
        return sum(self.rows.copy().values())

    @property
    def written(self):
        """How many tokens were drawn."""
        return sum(rows * steps for rows, steps in self.rows.copy().items())
