"""What a pool with tiers below it finds in a trace of blocks, counted from the description alone (docs/simulation.md).

Plain dictionaries and lists, one entry for each block; shares no code with the package.
"""

from collections import OrderedDict


class Host:
    """Blocks in the order of their last use, within `size` tokens."""

    def __init__(self, size, block):
        self.kept, self.most, self.written = OrderedDict(), size // block, 0

    def __contains__(self, key):
        return key in self.kept

    def read(self, key):
        self.kept.move_to_end(key)

    def put(self, key):
        while len(self.kept) >= self.most:
            self.kept.popitem(last=False)
        self.kept[key] = None
        self.written += 1


class Disk:
    """Sixteen segments; the oldest goes, of which up to three quarters are written again if they were hit."""

    def __init__(self, size, block):
        self.most, self.segment_most = size // block, max(size // 16 // block, 1)
        self.segments, self.is_hit, self.written, self.rewritten = [], {}, 0, 0

    def __contains__(self, key):
        return key in self.is_hit

    def read(self, key):
        self.is_hit[key] = True

    def append(self, key):
        if not self.segments or len(self.segments[-1]) >= self.segment_most:
            self.segments.append([])
        self.segments[-1].append(key)
        self.is_hit[key] = False

    def put(self, key):
        while len(self.is_hit) >= self.most:
            oldest = self.segments.pop(0)
            again = [each for each in oldest if self.is_hit[each]][: len(oldest) * 3 // 4]
            for each in oldest:
                del self.is_hit[each]
            for each in again:
                self.append(each)
            self.rewritten += len(again)
        self.append(key)
        self.written += 1


class Window:
    """The last `size` blocks that left the pool, whether each came back, and the share of late ones that did."""

    def __init__(self, size):
        self.size, self.came, self.share, self.gone, self.wants_all = size, OrderedDict(), 1.0, 0, True

    def note(self, key):
        if key in self.came:
            return True
        self.came[key] = False
        if len(self.came) > self.size:
            _, came = self.came.popitem(last=False)
            self.gone += 1
            self.share += (came - self.share) / min(self.gone, max(self.size // 2, 1))
            self.wants_all = self.share >= (0.09 if self.wants_all else 0.11)
        return False


class Tiered:
    """A pool of so many blocks, and what is written below it when."""

    def __init__(self, pool, tiers, write, block):
        self.pool, self.tiers, self.write, self.block = pool, tiers, write, block
        self.kept = OrderedDict()  # blocks in the pool and how often others began with them, those first that go first
        self.offered = []
        self.window = Window(tiers["disk"].most if "disk" in tiers else 0)

    def offer(self, name, key):
        if name in self.tiers and key not in self.tiers[name]:
            self.offered.append((name, key))

    def write_offered(self):
        for name, key in self.offered:
            self.tiers[name].put(key)
        self.offered = []

    def make_room(self, number):
        while len(self.kept) + number > self.pool:
            key, num_hits = self.kept.popitem(last=False)
            self.offer("host", key)
            if self.write in ("seal", "evict"):
                self.offer("disk", key)
                continue
            left_before = self.window.note(key)
            if num_hits or left_before or (self.write == "auto" and self.window.wants_all):
                self.offer("disk", key)

    def take(self, keys):
        """Pages that are whole now."""
        for key in keys:
            self.kept[key] = 0
            if key in self.window.came:
                self.window.came[key] = True
            if self.write == "seal" or (self.write == "auto" and self.window.wants_all):
                self.offer("disk", key)

    def where(self, key):
        return "pool" if key in self.kept else next((name for name in self.tiers if key in self.tiers[name]), None)

    def ask(self, keys, num_tokens):
        """How many tokens of a prompt were in the pool, and in each tier; None if it can never fit."""
        if len(keys) > self.pool:
            return None
        wheres = [self.where(key) for key in keys]
        number = wheres.index(None) if None in wheres else len(keys)
        held = next((at for at in range(number) if wheres[at] != "pool"), number)
        for key in keys[:held]:
            self.kept[key] += 1
            self.kept.move_to_end(key)
            if key in self.tiers.get("disk", ()):
                self.tiers["disk"].read(key)
        if held < number:
            self.make_room(number - held)
            for key, where in zip(keys[held:number], wheres[held:number], strict=True):
                self.tiers[where].read(key)
            self.write_offered()
            self.take(keys[held:number])
        self.make_room(len(keys) - number)
        self.take(keys[number:])
        for key in reversed(keys):
            self.kept.move_to_end(key)
        self.write_offered()
        tokens = dict.fromkeys(["pool", *self.tiers], 0)
        for at, where in enumerate(wheres[:number]):
            tokens[where] += min(self.block, num_tokens - at * self.block)
        return tokens


def tiered(rows, pool, host=None, disk=None, write="seal", block=512):
    """What each request of `rows` finds where, and the tiers at the end. `host` and `disk` are in tokens."""
    sizes = {"host": (Host, host), "disk": (Disk, disk)}
    tiers = {name: kind(size, block) for name, (kind, size) in sizes.items() if size is not None}
    counter = Tiered(pool, tiers, write, block)
    return [counter.ask(row["hash_ids"], row["input_length"]) for row in rows], tiers
