"""Who is next: first come, first served, but keys take turns."""

import collections


class Turns:
    """What waits, each of a key. Not for several threads at once."""

    def __init__(self):
        self._keys = collections.OrderedDict()  # key -> what waits of it, the key whose turn it is first

    def add(self, key, one):
        """Behind all others of its key."""
        self._keys.setdefault(key, collections.deque()).append(one)

    def take(self):
        """The next one, None if nothing waits."""
        if not self._keys:
            return None
        key, several = self._keys.popitem(last=False)
        one = several.popleft()
        if several:
            self._keys[key] = several
        return one

    def remove(self, unwanted=lambda one: True):
        """Take out all of which `unwanted(one)` is true. Returns them."""
        gone = [one for one in self if unwanted(one)]
        for key in [*self._keys] if gone else ():
            left = collections.deque(one for one in self._keys[key] if one not in gone)
            if left:
                self._keys[key] = left
            else:
                del self._keys[key]
        return gone

    def __iter__(self):
        return (one for several in self._keys.values() for one in several)

    def __len__(self):
        return sum(map(len, self._keys.values()))
