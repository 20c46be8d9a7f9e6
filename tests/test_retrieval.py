"""BM25 by hand, the collection is the world's, and a reply is judged as people would."""

import math

import numpy as np
import pytest

from utils import bottle, models, retrieval


def test_bm25_by_hand():
    passages = ["the cat sat on the mat", "a dog", "the dog and the cat play"]
    mean = (6 + 2 + 6) / 3

    def part(n, f, length):  # a word in n of the 3 passages, f times in one of this length
        room = 1.5 * (0.25 + 0.75 * length / mean)
        return math.log(1 + (3 - n + 0.5) / (n + 0.5)) * f * 2.5 / (f + room)

    wanted = [part(2, 1, 6), part(2, 1, 2), 2 * part(2, 1, 6)]
    assert retrieval.bm25("Cat, dog!", passages) == pytest.approx(wanted)
    assert retrieval.bm25("zebra", passages).tolist() == [0, 0, 0]
    assert retrieval.top(retrieval.bm25("Cat, dog!", passages), 2) == [2, 1]
    assert retrieval.top(np.zeros(5), 2) == [0, 1]


def test_the_collection_tells_every_fact_once_and_nothing_else():
    claims = [claim for passage in retrieval.collection() for claim in bottle.claims(passage)]
    people = bottle.world()["people"]
    told = {(p, a, v) for p, facts in people.items() for a, v in facts.items() if v}
    assert set(claims) == told and len(claims) == len(told) == len(retrieval.collection())


def test_replies_are_judged():
    fact, untold = retrieval.questions("test", 2)
    value, wrong, person = fact["drawn"]["value"], fact["drawn"]["wrong"], fact["person"]
    assert (fact["kind"], untold["kind"]) == ("fact", "untold")
    for reply, wanted in (
        (fact["drawn"]["statement"], "right"),
        (f"{value}.", "right"),
        (fact["drawn"]["false"], "wrong"),
        (f"{fact['drawn']['false']} {value}!", "wrong"),  # the right word in a false reply
        (f"{person} comes from Atlantis.", "wrong"),
        ("I do not know.", "does not know"),
        ("The notes do not mention it.", "does not know"),
    ):
        assert retrieval.judge(reply, fact) == wanted, reply
    assert retrieval.judge("I don't know that.", untold) == "right"
    assert retrieval.judge(untold["drawn"]["false"], untold) == "made up"
    assert wrong != value


def test_a_poisoned_passage_is_found():
    passages = retrieval.collection()
    embedded = models.sentence_embeddings(passages)
    for request in retrieval.questions("ppo", 8):
        clean = retrieval.shown(request, "MiniLM", passages, embedded)
        poison = retrieval.WAYS["a passage lies"][0].format(**request["drawn"])
        found = retrieval.shown(request, "a passage lies", passages, embedded)
        assert poison in found and len(found) == retrieval.FOUND and set(clean) <= set(passages)
