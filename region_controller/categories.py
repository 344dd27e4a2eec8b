"""The category tree, with how many services each subtree holds. Pure.

Anybody may publish under names of his own, so of a large tree only the categories with the most services are shown.
"""

from __future__ import annotations

import heapq
from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping, Sequence
from itertools import pairwise

from protocol.identifiers import category_ancestors, in_category
from protocol.instances import Category

MAX_SHOWN = 1000


def category_tree(published: Iterable[tuple[str, str]], top: str = "/") -> Category:
    """`published`: digest and category of each service. `top`: what the tree shall be of.

    At most MAX_SHOWN categories: those with the most services, of equal ones the nearest to the top. So what is shown
    hangs together, for no category has more services than the one above it.
    """
    services: Counter[str] = Counter()
    below: defaultdict[str, set[str]] = defaultdict(set)
    for category, count in Counter(category for _, category in set(published)).items():
        path = [above for above in category_ancestors(category) if in_category(above, top)]
        for one in path:
            services[one] += count
        for above, one in pairwise(path):
            below[above].add(one)
    shown = heapq.nsmallest(MAX_SHOWN, services, key=lambda one: (-services[one], len(one.split("/")), one))
    return _node(top, services, below, frozenset(shown))


def _node(category: str, services: Mapping[str, int], below: Mapping[str, set[str]], shown: frozenset[str]) -> Category:
    there = below.get(category, set())
    children: Sequence[str] = sorted(there & shown)
    return Category(
        category,
        services.get(category, 0),
        tuple(_node(child, services, below, shown) for child in children),
        more=len(there) - len(children),
    )
