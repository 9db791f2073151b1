"""The state of each item during the search for its smallest failing change, and the searches themselves.

A step changes one concept by one level, away from the item's start.
"""

from collections.abc import Iterator
from itertools import product

import numpy as np

from stages.concepts import ConceptSpace
from stages.explorers.prober import Answers, Prober

SUBSETS = 7  # largest number of categories of a change for which all subsets are probed: at most 126


class Moves:
    """The numbered moves of microscopic exploration; each is one step in one direction of one concept.

    An ordered concept moves by one level, a categorical one from its start to any other category. All moves lead away
    from the start: the shortest path to a failure never steps back, so after k steps a cell is k steps from the start,
    whatever the path, and the number of steps is the size of the change.

    Args:
        start: (concepts,) level indices at which all paths start.
    """

    def __init__(self, space: ConceptSpace, start: np.ndarray) -> None:
        self.space, self.start = space, np.asarray(start, dtype=np.int64)
        self._ordered = np.array([concept.ordered for concept in space.concepts])
        directions: list[tuple[int, int, int]] = []  # concept, change of its level index, maximum number of steps
        for j, (concept, at) in enumerate(zip(space.concepts, self.start.tolist(), strict=True)):
            if concept.ordered:
                directions += [(j, 1, len(concept) - 1 - at), (j, -1, at)]
            else:
                directions += [(j, level - at, 1) for level in range(len(concept)) if level != at]
        directions = [direction for direction in directions if direction[2] > 0]
        self.concept, self.change, self.reach = np.array(directions, dtype=np.int64).reshape(-1, 3).T

    def __len__(self) -> int:
        return len(self.concept)

    @property
    def varied(self) -> list[int]:
        """Positions of the concepts that can move."""
        return sorted(set(self.concept.tolist()))

    @property
    def lines(self) -> list[np.ndarray]:
        """The moves of each concept that can move."""
        return [np.flatnonzero(self.concept == j) for j in self.varied]

    @property
    def longest(self) -> int:
        """Number of steps to the cell furthest from the start."""
        return sum(int(self.reach[self.concept == j].max()) for j in self.varied)

    def steps(self, cells: np.ndarray) -> np.ndarray:
        """Return the number of steps from the start to cells (n, concepts): (n,) int64."""
        away = np.abs(np.asarray(cells) - self.start)
        return np.where(self._ordered, away, away > 0).sum(axis=1)

    def valid(self, cells: np.ndarray) -> np.ndarray:
        """Return which moves are possible from cells (n, concepts): (n, moves) bool."""
        away = np.asarray(cells)[:, self.concept] - self.start[self.concept]
        onward = (away * self.change >= 0) & (np.abs(away) < self.reach)
        return np.where(self._ordered[self.concept], onward, away == 0)

    def take(self, cells: np.ndarray, moves: np.ndarray) -> np.ndarray:
        """Return the cells after one valid move (n,) each from cells (n, concepts)."""
        taken = np.array(cells, dtype=np.int64)
        taken[np.arange(len(taken)), self.concept[moves]] += self.change[moves]
        return taken

    def onward(self, cells: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Return all cells one step further than cells (n, concepts): rows of origin (m,), and cells (m, concepts)."""
        rows, moves = np.nonzero(self.valid(cells))
        return rows, self.take(np.asarray(cells)[rows], moves)

    def back(self, cells: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Return all cells one step nearer than cells (n, concepts), in the format of `onward`."""
        cells = np.asarray(cells, dtype=np.int64)
        rows, concepts = np.nonzero(cells != self.start)
        nearer = cells[rows]
        away = nearer[np.arange(len(rows)), concepts] - self.start[concepts]
        nearer[np.arange(len(rows)), concepts] -= np.where(self._ordered[concepts], np.sign(away), away)
        return rows, nearer

    def fewer(self, cells: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Return all cells that keep some, but not all, categories of cells (n, concepts), in the format of `onward`.

        Cells with more than SUBSETS categories are left out, because they have too many subsets.
        """
        cells = np.asarray(cells, dtype=np.int64)
        rows, left = [np.empty(0, dtype=np.int64)], [np.empty((0, len(self.start)), dtype=np.int64)]
        for row, cell in enumerate(cells):
            said = np.flatnonzero(~self._ordered & (cell != self.start))
            if not 2 < len(said) <= SUBSETS:  # `back` covers cells with two
                continue
            gone = np.array(list(product((False, True), repeat=len(said)))[1:-1])
            some = np.tile(cell, (len(gone), 1))
            some[:, said] = np.where(gone, self.start[said], cell[said])
            rows.append(np.full(len(some), row))
            left.append(some)
        return np.concatenate(rows), np.vstack(left)


NEVER = np.iinfo(np.int64).max  # number of steps if no failure was found
SHARED = 8  # failing cells tried on other items at a time


class WalkState:
    """The state of one exploration, which keeps the nearest failure of each item, whatever is probed.

    Args:
        prober: answers within the budget; the walked items are its first `items`.
        items: number of items that walk.
        limit: steps after which a search gives up.

    Attributes:
        radius: (items,) steps to the nearest failure found: 0 if the item fails at the start, NEVER if there is none.
        failing: (items, concepts) that failing cell; the start if there is none.
        searched: (items,) steps up to which a search went.
        passed: (items,) steps up to which *all* cells were probed and passed: the radius is larger.
        alone: (items, concepts) steps to a failure by one concept alone, or NEVER.
        queries: (items,) unique probes spent on each.
    """

    def __init__(self, prober: Prober, moves: Moves, items: int, limit: int | None = None) -> None:
        self.prober, self.moves = prober, moves
        self.limit = min(limit or NEVER, moves.longest)
        self.radius = np.full(items, NEVER)
        self.failing = np.tile(moves.start, (items, 1))
        self.searched = np.full(items, -1)
        self.passed = np.full(items, -1)
        self.alone = np.full((items, len(moves.space)), NEVER)
        self.queries = np.zeros(items, dtype=np.int64)
        everyone = np.arange(items)
        answers = self.ask(everyone, self.failing)
        self.searched[answers.answered] = 0
        self.passed[answers.answered & ~answers.failed] = 0

    def ask(self, items: np.ndarray, cells: np.ndarray) -> Answers:
        """Probe items (n,) under cells (n, concepts); of equally near failures the clearest is kept."""
        answers = self.prober.ask(items, cells)
        np.add.at(self.queries, items[answers.fresh], 1)
        steps = self.moves.steps(cells)
        nearer = np.flatnonzero(answers.failed & (steps < self.radius[items]) & (steps <= self.limit))
        # The best of each item comes last, so that it overwrites the others.
        nearer = nearer[np.lexsort((answers.discrepancy[nearer], -steps[nearer]))]
        self.radius[items[nearer]], self.failing[items[nearer]] = steps[nearer], cells[nearer]
        return answers


def try_alone(walks: WalkState) -> np.ndarray:
    """Find by bisection how far each concept alone has to go, for all items and directions at once.

    It assumes that a change that fails also fails when it is stronger, which held on 99% of the lines of an enumerated
    landscape (MNIST, 80 items, four concepts); the failure it returns is real in any case.

    Returns:
        (items, moves) discrepancy with each move alone taken as often as possible; NaN if that was not probed.
    """
    moves = walks.moves
    harm = np.full((len(walks.radius), len(moves)), np.nan)
    items, lines = np.nonzero(np.tile(walks.radius[:, None] > 0, len(moves)))
    strongest = np.minimum(moves.reach[lines], walks.limit)
    unchanged = np.tile(moves.start, (len(items), 1))
    answers = walks.ask(items, _moved(walks, unchanged, lines, strongest))
    harm[items, lines] = answers.discrepancy
    failed = answers.failed
    items, lines, strongest = items[failed], lines[failed], strongest[failed]
    least = _bisect(walks, items, unchanged[failed], lines, np.zeros(len(items), dtype=np.int64), strongest)
    np.minimum.at(walks.alone, (items, moves.concept[lines]), least)
    return harm


def reduce_strongest(walks: WalkState, harm: np.ndarray) -> None:
    """If no concept alone makes an item fail, change all as far as possible, then undo what is not needed.

    Each concept is undone as far as the failure allows, by bisection: once starting with those that do least harm
    alone (see `try_alone`), and once in the reverse order, because the result depends on the order. Some twenty queries
    so leave a small change; this is the idea of delta debugging (Zeller and Hildebrandt 2002).
    """
    moves = walks.moves
    items = _open(walks, harm)
    if not len(items):
        return
    # For a concept that moves in more than one direction, use the one that does most harm.
    worst = np.stack([lines[harm[items][:, lines].argmax(axis=1)] for lines in moves.lines], axis=1)
    _reduce(walks, harm, items, worst)


def reduce_drawn(walks: WalkState, harm: np.ndarray, rng: np.random.Generator) -> None:
    """If that found nothing, change all as far as possible in random directions, and undo in the same way.

    One cell that changes every concept contains many pairs and triples of categories, far more than a search that adds
    one after the other can probe, and needs no margin to follow. This is how combinatorial testing finds words that
    fail together (Cohen et al. 1997), and delta debugging which of them are needed. Each item takes the directions of
    each concept in turn, in its own order. A failure of one item is immediately tried on the others.
    """
    sizes = sorted(len(lines) for lines in walks.moves.lines)
    if not sizes or sizes[-1] == 1:  # there is only one direction, which was tried
        return
    items = _open(walks, harm)
    rounds = len(walks.moves)  # as many probes again as trying each direction alone takes
    drawn = np.stack([_in_turn(lines, len(items), rounds, rng) for lines in walks.moves.lines], axis=2)
    for turn in range(rounds):
        still = walks.radius[items] == NEVER
        if not still.any() or walks.prober.left <= 0:
            return
        _reduce(walks, harm, items[still], drawn[still, turn])
        share_failures(walks)


def _in_turn(lines: np.ndarray, items: int, rounds: int, rng: np.random.Generator) -> np.ndarray:
    """Return all lines (m,) in a random order, then in another, ...: (items, rounds)."""
    orders = [rng.permuted(np.tile(lines, (items, 1)), axis=1) for _ in range(-(-rounds // len(lines)))]
    return np.hstack(orders)[:, :rounds]


def share_failures(walks: WalkState) -> None:
    """Try the most common failing cells of other items on those for which nothing was found."""
    found = walks.failing[(walks.radius > 0) & (walks.radius < NEVER)]
    cells, counts = np.unique(found, axis=0, return_counts=True)
    for cell in cells[np.lexsort((walks.moves.steps(cells), -counts))][:SHARED]:
        items = np.flatnonzero(walks.radius == NEVER)
        walks.ask(items, np.tile(cell, (len(items), 1)))


def _open(walks: WalkState, harm: np.ndarray) -> np.ndarray:
    """Return the items that were tried along each concept alone without finding a failure."""
    return np.flatnonzero((walks.radius == NEVER) & np.isfinite(harm).all(axis=1))


def _reduce(walks: WalkState, harm: np.ndarray, items: np.ndarray, lines: np.ndarray) -> None:
    """Change items (n,) along lines (n, varied concepts) as far as possible; undo what the failure does not need."""
    moves = walks.moves
    cells = np.tile(moves.start, (len(items), 1))
    for column in lines.T:
        cells = _moved(walks, cells, column, moves.reach[column])
    failed = walks.ask(items, cells).failed
    items, cells, lines = items[failed], cells[failed], lines[failed]
    order = np.argsort(np.take_along_axis(harm[items], lines, axis=1), axis=1, kind="stable")
    for turns in (order, order[:, ::-1]):
        left = cells
        for column in np.take_along_axis(lines, turns, axis=1).T:
            least = _bisect(walks, items, left, column, np.full(len(items), -1), moves.reach[column])
            left = _moved(walks, left, column, least)


def _moved(walks: WalkState, cells: np.ndarray, lines: np.ndarray, steps: np.ndarray) -> np.ndarray:
    """Return cells (n, concepts) with the concept of a move (n,) each at a number of steps (n,) from its start."""
    moves, rows = walks.moves, np.arange(len(cells))
    concepts = moves.concept[lines]
    moved = cells.copy()
    moved[rows, concepts] = moves.start[concepts] + steps * moves.change[lines]
    return moved


def _bisect(
    walks: WalkState, items: np.ndarray, cells: np.ndarray, lines: np.ndarray, passes: np.ndarray, fails: np.ndarray
) -> np.ndarray:
    """Find by bisection the fewest steps of one move (n,) each that make an item fail, with the rest of its cell fixed.

    Args:
        items: (n,) positions.
        cells: (n, concepts) the rest of each cell.
        lines: (n,) the move.
        passes: (n,) steps that pass, one less than the least to try.
        fails: (n,) steps that fail.

    Returns:
        (n,) the fewest steps found to fail.
    """
    passes, fails = passes.copy(), fails.copy()
    while len(rows := np.flatnonzero(fails - passes > 1)):
        middle = (passes[rows] + fails[rows]) // 2
        answers = walks.ask(items[rows], _moved(walks, cells[rows], lines[rows], middle))
        if not answers.answered.any():
            break
        fails[rows[answers.failed]] = middle[answers.failed]
        passed = answers.answered & ~answers.failed
        passes[rows[passed]] = middle[passed]
    return fails


def search_layers(walks: WalkState, width: int | None) -> None:
    """Search outward from the start, one step per layer, until each item fails or a nearer failure is already known.

    Args:
        walks: the state of the exploration; one layer of all items is one batch.
        width: number of cells of a layer to follow, nearest to failing first (beam search); None follows all of them
            (breadth-first search), so that the first failure is the nearest.
    """
    moves = walks.moves
    items = np.flatnonzero(walks.radius > 0)
    cells = np.tile(moves.start, (len(items), 1))
    whole = np.ones(len(walks.radius), dtype=bool)  # no cell of an earlier layer was left out
    for depth in range(1, walks.limit + 1):
        rows, cells = moves.onward(cells)
        pairs = np.unique(np.column_stack([items[rows], moves.space.flat(cells)]), axis=0)
        pairs = pairs[walks.radius[pairs[:, 0]] > depth]
        items, cells = pairs[:, 0], moves.space.cells(pairs[:, 1])
        if not len(items):
            return
        answers = walks.ask(items, cells)
        cut = np.unique(items[~answers.answered])
        done = np.setdiff1d(items, cut)
        walks.searched[done] = np.maximum(walks.searched[done], depth)
        safe = done[(walks.radius[done] > depth) & whole[done]]
        walks.passed[safe] = np.maximum(walks.passed[safe], depth)
        open_ = np.isin(items, done) & (walks.radius[items] > depth)
        items, cells, margins = items[open_], cells[open_], answers.discrepancy[open_]
        if width is not None:
            rank = _rank_within(items, margins)
            whole[items[rank >= width]] = False
            items, cells = items[rank < width], cells[rank < width]


def _rank_within(items: np.ndarray, values: np.ndarray) -> np.ndarray:
    """Rank each value (n,) among those of the same item, largest first: (n,) from 0."""
    order = np.lexsort((-values, items))
    first = np.searchsorted(items[order], items[order])
    rank = np.empty(len(items), dtype=np.int64)
    rank[order] = np.arange(len(items)) - first
    return rank


def walk_back(walks: WalkState) -> None:
    """Undo single steps while the rest still fails, so that no step of the change is superfluous.

    Categories need not add up: two words may fail although these two and a third pass. So all subsets of up to seven
    are probed.
    """
    for nearer in (walks.moves.back, walks.moves.fewer, walks.moves.back):
        moving = np.flatnonzero((walks.radius > 0) & (walks.radius < NEVER))
        while len(moving):
            before = walks.radius[moving]
            rows, cells = nearer(walks.failing[moving])
            walks.ask(moving[rows], cells)
            moving = moving[walks.radius[moving] < before]


def widths(widest: int) -> Iterator[int]:
    """Yield 1, 2, 4, ... up to the widest."""
    width = 1
    while width < widest:
        yield width
        width *= 2
    yield widest
