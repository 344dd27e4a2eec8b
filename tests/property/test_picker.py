"""Whatever answers, failures, lies and joins come in whatever order: each chunk once, or a clear failure."""

from __future__ import annotations

from hypothesis import given, settings
from hypothesis import strategies as st

from dht.swarm.picker import Ask, Cancel, Limits, Picker
from dht.swarm.pipelining import Pipelining

PROVIDERS = ["a", "b", "c", "d"]


@settings(max_examples=150, deadline=None)
@given(data=st.data())
def test_any_interleaving_ends_with_every_chunk_once_or_no_hope(data: st.DataObject) -> None:
    count = data.draw(st.integers(1, 12), label="pieces")
    order = data.draw(st.permutations(range(count)), label="order")
    pipelining = Pipelining(depth=data.draw(st.integers(1, 3)), max_pieces=data.draw(st.integers(1, 5)))
    limits = Limits(pipelining, stall_s=3.0, slow_after_s=8.0)
    picker = Picker(dict.fromkeys(range(count), 100_000), order, limits)
    under_way: dict[int, Ask] = {}
    undelivered: dict[int, list[int]] = {}
    kept: list[int] = []
    now = 0.0
    for name in data.draw(st.lists(st.sampled_from(PROVIDERS), min_size=1, unique=True), label="first providers"):
        picker.provide(name, data.draw(st.none() | st.sets(st.integers(0, count - 1)), label=f"{name} has"))

    for _ in range(80):
        dropped_before = set(picker.dropped)
        for effect in picker.decide(now):
            if isinstance(effect, Cancel):
                under_way.pop(effect.request, None)
                continue
            assert effect.provider not in dropped_before
            assert effect.pieces
            assert all(picker.wants(p) for p in effect.pieces)
            under_way[effect.request] = effect
            undelivered[effect.request] = list(effect.pieces)
        if picker.done or (picker.hopeless and not under_way):
            break
        event = data.draw(
            st.sampled_from(["deliver", "finish", "fail", "lie", "busy", "lack", "elsewhere", "join", "wait"])
        )
        if event == "join":
            name = data.draw(st.sampled_from(PROVIDERS))
            picker.provide(name, data.draw(st.none() | st.sets(st.integers(0, count - 1))))
            continue
        if event == "wait" or not under_way:
            now += data.draw(st.sampled_from([0.1, 0.5, 4.0]))
            continue
        number = data.draw(st.sampled_from(sorted(under_way)), label="request")
        left = undelivered[number]
        if event == "deliver" and left:
            piece = left.pop(0)
            if picker.delivered(number, piece, now):
                kept.append(piece)
        elif event == "lack" and left:
            picker.lacking(number, left.pop(0))
        elif event == "elsewhere" and left:
            picker.elsewhere(number, left.pop(0), now)
        elif event in ("fail", "lie", "busy", "finish"):
            if event == "fail":
                picker.failed(number, now, "reset")
            elif event == "lie":
                picker.lied(number, "lied")
                assert under_way[number].provider in picker.dropped
            elif event == "busy":
                picker.busy(number, now, 0.5)
            else:
                picker.finished(number, now)
            del under_way[number]

    assert len(kept) == len(set(kept)), "no piece was kept twice"
    assert {p for p in range(count) if not picker.wants(p)} == set(kept), "no piece was lost"

    # From here on one honest, whole provider is there: the transfer must come to its end.
    picker.provide("honest", None)
    for number in list(under_way):
        picker.failed(number, now, "gone")
    for _ in range(20 * count):
        now += 0.5
        for effect in picker.decide(now):
            if isinstance(effect, Ask):
                if effect.provider != "honest":
                    picker.failed(effect.request, now, "gone")
                    continue
                for piece in effect.pieces:
                    if picker.delivered(effect.request, piece, now):
                        kept.append(piece)
                picker.finished(effect.request, now)
        if picker.done:
            break
    assert sorted(kept) == list(range(count))
