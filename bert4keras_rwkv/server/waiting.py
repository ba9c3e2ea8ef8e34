"""Who waits: first come, first served, but keys take turns."""

import collections


class Waiting:
    """Tickets in the order in which they are begun. Not for several threads at once."""

    def __init__(self):
        self._keys = collections.OrderedDict()  # key -> its tickets, the key whose turn it is first

    def add(self, ticket):
        """Behind all others of its key."""
        self._keys.setdefault(ticket.asked.key, collections.deque()).append(ticket)

    def take(self):
        """The next ticket, None if nobody waits."""
        if not self._keys:
            return None
        key, tickets = self._keys.popitem(last=False)
        ticket = tickets.popleft()
        if tickets:
            self._keys[key] = tickets
        return ticket

    def remove(self, unwanted):
        """Take out the tickets of which `unwanted(ticket)` is true. Returns them."""
        gone = [ticket for ticket in self if unwanted(ticket)]
        for key in [*self._keys] if gone else ():
            left = collections.deque(ticket for ticket in self._keys[key] if ticket not in gone)
            if left:
                self._keys[key] = left
            else:
                del self._keys[key]
        return gone

    @property
    def answers(self):
        """How many answers they want."""
        return sum(ticket.asked.answers for ticket in self)

    def __iter__(self):
        return (ticket for tickets in self._keys.values() for ticket in tickets)
