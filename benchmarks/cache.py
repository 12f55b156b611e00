"""What the cache's bookkeeping costs, in microseconds per page and bytes per page.

Pages hold no bytes here, so only the prefix tree, page tables, reference counts and eviction are measured:

    match    find a prompt that is held                     per page of the prompt
    attach   take its pages over, and release them again    per page of the prompt
    insert   reserve and commit pages that are new          per new page
    evict    free idle pages and allocate them              per page
    new      all of it for prompts that are new, in a full cache    per new page
    hit      all of it for prompts that are held                    per page

With `--peer vllm=PYTHON` vLLM's own manager, run by that interpreter, does the last two for the same prompts: it makes
the request, hashes and looks up its blocks, allocates and caches them, and frees them.

Two shapes of tree:

    shared   prompts of 64 pages: the first 16 are one of 4, the next 16 one of 8 below each, then one of 16, the rest
             unique
    flat     prompts of one page: every page is a child of the root, the worst case for fan-out

Times are CPU times of the one thread. Every row runs in a process of its own, which makes its peak memory its own.
"""

from __future__ import annotations

import argparse
import json
import multiprocessing
import resource
import subprocess
from array import array
from dataclasses import asdict, dataclass, field
from pathlib import Path
from statistics import median
from time import process_time

from pagoda.cache.cache import Cache, NoBytes
from pagoda.cache.groups.pages import PageGroup
from pagoda.cache.groups.rule import KeepAll
from pagoda.cache.inspector import Inspector
from pagoda.cache.prefix.gone import Gone
from pagoda.cache.prefix.keys import TOKEN_TYPE
from pagoda.registry import lookup, names
from peers.cache_prompts import PROMPT_PAGES, prompts

MISS_NBYTES = 4 << 20
STEPS = ("match", "attach", "insert", "evict", "new", "hit")
PEERS = {"vllm": Path(__file__).parent / "peers" / "vllm_cache.py"}


@dataclass(frozen=True)
class Setup:
    """One row of the table."""

    shape: str
    num_pages: int
    page_tokens: int
    policy: str
    num_repeats: int

    @property
    def batch_pages(self) -> int:
        """New pages per repeat: enough to measure, few enough that the size of the cache stays what it is."""
        return min(self.num_pages // (4 * self.num_repeats), 8192)


@dataclass
class Row:
    """What was measured; `micros[step]` has one value per repeat."""

    shape: str
    num_pages: int
    micros: dict[str, list[float]] = field(default_factory=lambda: {step: [] for step in STEPS})
    peak_nbytes_per_page: float = 0.0
    engine: str = "pagoda"


class Bench:
    """A cache that is filled and then measured."""

    def __init__(self, setup: Setup) -> None:
        self.setup = setup
        self.row = Row(setup.shape, setup.num_pages)
        # As the engine keeps tokens.
        self.prompts = (array(TOKEN_TYPE, prompt) for prompt in prompts(setup.shape, setup.page_tokens))
        next(self.prompts)
        baseline = _peak_nbytes()
        policy = lookup("eviction", setup.policy)()
        group = PageGroup(setup.num_pages, setup.page_tokens, policy, KeepAll())
        group.prefixes.watch_removals(Gone(MISS_NBYTES).removed)  # as in the engine
        self.cache = Cache([group], [NoBytes()])
        self._fill(until_free=(setup.num_repeats + 1) * setup.batch_pages)
        for _ in range(setup.num_repeats):
            self._insert_batch()
        self.row.peak_nbytes_per_page = (_peak_nbytes() - baseline) / setup.num_pages
        self._fill(until_free=0)
        for _ in range(setup.num_repeats):
            self._live_batch()
        for _ in range(setup.num_repeats):
            self._evict_batch()

    def _fill(self, until_free: int) -> None:
        while Inspector(self.cache).stats().groups[0].free > until_free:
            self._run(next(self.prompts))

    def _insert_batch(self) -> None:
        """Run new prompts, then match and attach them again."""
        seconds, num_new, batch = 0.0, 0, []
        while num_new < self.setup.batch_pages:
            batch.append(next(self.prompts))
            spent, new = self._run(batch[-1])
            seconds += spent
            num_new += new
        self._note("insert", seconds, num_new)
        num_pages = len(batch) * PROMPT_PAGES[self.setup.shape]

        start = process_time()
        hits = [self.cache.match("", tokens, limit=len(tokens)) for tokens in batch]
        self._note("match", process_time() - start, num_pages)

        start = process_time()
        for hit, tokens in zip(hits, batch, strict=True):
            self.cache.release(self.cache.attach(hit, hit.num_tokens), tokens)
        self._note("attach", process_time() - start, num_pages)

    def _run(self, tokens: array[int]) -> tuple[float, int]:
        """Compute a prompt and let it end; returns the seconds that inserting took, and how many pages were new."""
        sequence = self.cache.attach(self.cache.match("", tokens, limit=len(tokens)), len(tokens))
        num_new = len(tokens) - sequence.num_tokens
        start = process_time()
        if not self.cache.reserve(sequence, num_new):
            raise SystemExit("The cache is too small for one prompt; give --pages more.")
        self.cache.commit(sequence, tokens, len(tokens))
        spent = process_time() - start
        self.cache.release(sequence, tokens)
        return spent, -(-num_new // self.setup.page_tokens)

    def _live_batch(self) -> None:
        """Let new prompts come and go in a full cache, and then come again."""
        num_prompts = max(self.setup.batch_pages // PROMPT_PAGES[self.setup.shape], 1)
        batch = [next(self.prompts).tolist() for _ in range(num_prompts)]
        for step in ("new", "hit"):
            evicted = Inspector(self.cache).stats().evicted_pages
            start = process_time()
            for tokens in batch:
                self._live(tokens)
            spent = process_time() - start
            new = Inspector(self.cache).stats().evicted_pages - evicted
            self._note(step, spent, new if step == "new" else num_prompts * PROMPT_PAGES[self.setup.shape])

    def _live(self, prompt: list[int]) -> None:
        """All that the cache does for a prompt, as the engine asks for it."""
        tokens = array(TOKEN_TYPE, prompt)
        sequence = self.cache.attach(self.cache.match("", tokens, len(tokens)), len(tokens))
        if sequence.num_tokens < len(tokens):
            self.cache.reserve(sequence, len(tokens) - sequence.num_tokens)
            self.cache.commit(sequence, tokens, len(tokens))
        self.cache.release(sequence, tokens)

    def _evict_batch(self) -> None:
        """Make room for a sequence that wants a batch of pages from a full cache, and keep it."""
        sequence = self.cache.attach(self.cache.match("", [], limit=0), 0)
        evicted = Inspector(self.cache).stats().evicted_pages
        start = process_time()
        self.cache.reserve(sequence, self.setup.batch_pages * self.setup.page_tokens)
        spent = process_time() - start
        self._note("evict", spent, Inspector(self.cache).stats().evicted_pages - evicted)

    def _note(self, step: str, seconds: float, num_pages: int) -> None:
        self.row.micros[step].append(1e6 * seconds / num_pages)


def measure(setup: Setup) -> Row:
    return Bench(setup).row


def measure_peer(engine: str, python: str, setup: Setup) -> Row:
    """What the interpreter `python`, which has the other engine, measures of its own."""
    command = [python, PEERS[engine], json.dumps(asdict(setup) | {"batch_pages": setup.batch_pages})]
    finished = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True)
    row = Row(setup.shape, setup.num_pages, engine=engine)
    row.micros |= json.loads(finished.stdout.splitlines()[-1])
    return row


def _peak_nbytes() -> int:
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024


def table(rows: list[Row]) -> str:
    """Median (lowest to highest) of the repeats."""
    lines = [
        f"{'':8}{'shape':8}{'pages':>9}" + "".join(f"{step + ' us/page':>22}" for step in STEPS) + f"{'bytes/page':>12}"
    ]
    for row in rows:
        cells = (f"{median(us):.2f} ({min(us):.2f} to {max(us):.2f})" if us else "" for us in row.micros.values())
        line = f"{row.engine:8}{row.shape:8}{row.num_pages:>9,}" + "".join(f"{cell:>22}" for cell in cells)
        lines.append(f"{line}{row.peak_nbytes_per_page:>12,.0f}" if row.peak_nbytes_per_page else line)
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--pages", type=int, nargs="+", default=[1_000, 100_000, 1_000_000], help="cache sizes")
    parser.add_argument("--shapes", nargs="+", choices=tuple(PROMPT_PAGES), default=list(PROMPT_PAGES))
    parser.add_argument("--page-tokens", type=int, default=32, help="tokens per page (default 32)")
    parser.add_argument("--policy", choices=names("eviction"), default=names("eviction")[0], help="eviction policy")
    parser.add_argument("--repeats", type=int, default=5, help="measurements per number (default 5)")
    parser.add_argument("--peer", action="append", default=[], help="vllm=PYTHON: an interpreter that has vLLM")
    parser.add_argument("--json", action="store_true", help="print one JSON object with every measurement")
    arguments = parser.parse_args()
    setups = [
        Setup(shape, num_pages, arguments.page_tokens, arguments.policy, arguments.repeats)
        for shape in arguments.shapes
        for num_pages in arguments.pages
    ]
    with multiprocessing.get_context("spawn").Pool(1, maxtasksperchild=1) as pool:
        rows = []
        for setup in setups:
            rows += [measure_peer(*peer.split("=", 1), setup) for peer in arguments.peer]
            rows.append(pool.apply(measure, (setup,)))
    print(json.dumps([asdict(row) for row in rows], indent=2) if arguments.json else table(rows))


if __name__ == "__main__":
    main()
