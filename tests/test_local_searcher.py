"""The searcher on one machine against brute force, and generations that change under it."""

import threading

import numpy as np
import pytest

import serve.searchers.local
from configs.generations import current_generation
from crawl.tags import normalise_tags
from features.tag_vectors import CarriedWords
from serve.searchers.base import Question
from serve.searchers.current import CurrentSearcher
from serve.searchers.local import LocalSearcher
from tests.synthetic import AWKWARD, NO_VECTOR, PHRASE, TAGS, copy_line, records
from tests.test_publish import index_again, published

pytestmark = pytest.mark.usefixtures("one_thread")

RECORDS = {record.image_id: record for record in records()}


@pytest.fixture(scope="module")
def directory(trained):
    return current_generation(trained.artifact("served") / "small", make="")


@pytest.fixture(scope="module")
def searcher(trained, directory):
    return LocalSearcher(directory, trained.artifact("collection"), CarriedWords())


def carrying(*tags):
    return {name for name, record in RECORDS.items() if set(tags) <= set(normalise_tags(record.tags))}


def brute_force(directory, *tags):
    """Rank the images that carry all tags by the mean of their cosines; known tags only."""
    ids = np.loadtxt(directory / "image_ids.txt", dtype=str)
    names = (directory / "tags.txt").read_text(encoding="utf-8").splitlines()
    rows = np.flatnonzero([name in carrying(*tags) for name in ids])
    wanted = np.load(directory / "tag_embeddings.npy")[[names.index(tag) for tag in tags]].mean(axis=0)
    scores = np.load(directory / "embeddings.npy")[rows].astype(np.float32) @ wanted
    return [str(ids[rows[at]]) for at in np.lexsort((rows, -scores))]


def asked(searcher, text, offset=0, limit=1000):
    return searcher.search(Question(text, offset=offset, limit=limit))


def matches(answer):
    return [hit for hit in answer.hits if not hit.guess]


def ids_of(answer):
    return [hit.image_id for hit in matches(answer)]


@pytest.mark.parametrize("tag", TAGS)
def test_one_tag_is_ranked_as_brute_force_ranks_it(searcher, directory, tag):
    answer = asked(searcher, tag, 0, 1000)
    assert ids_of(answer) == brute_force(directory, tag)
    assert answer.num_matches == answer.num_shown == len(matches(answer))


@pytest.mark.parametrize("tags", [("dog", "cat"), ("river", "boat"), (PHRASE, "car")])
def test_several_tags_are_ranked_as_brute_force_ranks_their_images(searcher, directory, tags):
    answer = asked(searcher, " ".join(tags), 0, 1000)
    assert [count.tag for count in answer.tags] == list(tags)
    assert ids_of(answer) == brute_force(directory, *tags)


@pytest.mark.parametrize(
    "text", ["dog cat horse", f"dog cat {PHRASE}", "apple bridge river guitar", f"{NO_VECTOR} dog"]
)
def test_several_tags_find_the_images_that_carry_all_of_them(searcher, text):
    answer = asked(searcher, text, 0, 1000)
    assert set(ids_of(answer)) == carrying(*(count.tag for count in answer.tags))
    assert answer.num_matches == answer.num_shown == len(matches(answer))


@pytest.mark.parametrize("text", ["dog", "dog cat", PHRASE])
def test_scores_fall_and_are_cosines(searcher, text):
    scores = [hit.score for hit in matches(asked(searcher, text, 0, 1000))]
    assert (np.diff(scores) <= 1e-6).all()
    assert max(np.abs(scores)) <= 1.001


@pytest.mark.parametrize("text", ["dog", "dog cat", NO_VECTOR, "dog OR cat", "-dog", "puppy", "dog puppy", "c*"])
def test_pages_put_together_are_the_whole_list(trained, directory, text):
    fresh = LocalSearcher(directory, trained.artifact("collection"), CarriedWords())
    pages = [asked(fresh, text, offset, 7).hits for offset in range(0, 300, 7)]
    whole = asked(LocalSearcher(directory, trained.artifact("collection"), CarriedWords()), text, 0, 1000)
    assert sum(pages, ()) == whole.hits
    assert len(whole.hits) == whole.num_shown + whole.num_guesses


@pytest.mark.parametrize("text", ["dog", "dog cat"])
def test_a_page_beyond_the_end_is_empty(searcher, text):
    answer = asked(searcher, text, 10_000_000, 40)
    assert answer.hits == ()
    assert answer.num_matches > 0


def test_a_tag_without_a_vector_is_searched_by_its_images_in_ascending_order(searcher):
    answer = asked(searcher, NO_VECTOR, 0, 1000)
    assert ids_of(answer) == sorted(carrying(NO_VECTOR))
    assert {hit.score for hit in answer.hits} == {0.0}
    assert answer.num_guesses == 0


def test_a_tag_without_a_vector_adds_nothing_to_the_score(searcher):
    both, one = asked(searcher, f"dog {NO_VECTOR}", 0, 1000), asked(searcher, "dog", 0, 1000)
    kept = [image_id for image_id in ids_of(one) if image_id in carrying(NO_VECTOR)]
    assert ids_of(both) == kept


def test_the_query_of_an_answer_asks_for_the_same_tags(searcher):
    answer = asked(searcher, f'DOG {PHRASE} "{AWKWARD[0]}"', 0, 5)
    assert [count.tag for count in asked(searcher, answer.query, 0, 5).tags] == ["dog", PHRASE, AWKWARD[0]]


@pytest.mark.parametrize("text", ["", "  ,, ", '""'])
def test_a_query_of_no_words_has_no_tags(searcher, text):
    assert asked(searcher, text, 0, 10).tags == ()


TYPOS = {"dgo": "dog", "appel": "apple", "brige": "bridge", "rivers": "river", "gitar": "guitar", "clokc": "clock"} | {
    "trafic light": PHRASE, "chairr": "chair", "hrose": "horse", "tre": "tree", "baot": "boat"
}  # fmt: skip


@pytest.mark.parametrize("typo", TYPOS)
def test_of_a_misspelt_tag_the_intended_one_is_among_the_first_three(searcher, typo):
    near = searcher.near(typo)
    assert TYPOS[typo] in [count.tag for count in near.by_spelling[:3]]


@pytest.mark.parametrize(("word", "meant"), [("puppy", "dog"), ("ship", "boat"), ("automobile", "car")])
def test_of_an_unknown_word_the_tag_of_the_nearest_meaning_comes_first(searcher, word, meant):
    answer = asked(searcher, word, 0, 10)
    assert answer.unknown[0].by_meaning[0].tag == meant
    assert answer.num_matches == 0


def test_one_unknown_word_leaves_the_known_tags_named(searcher):
    answer = asked(searcher, "dog wxyz", 0, 10)
    assert [count.tag for count in answer.tags] == ["dog"]
    assert [near.word for near in answer.unknown] == ["wxyz"]


def test_without_words_of_the_same_space_there_are_no_neighbours_by_meaning(trained, directory):
    class OtherWords(CarriedWords):
        def __init__(self):
            super().__init__()
            self.digest = "another"

    searcher = LocalSearcher(directory, trained.artifact("collection"), OtherWords())
    assert searcher.near("puppy").by_meaning == ()


def test_where_no_tag_has_a_vector_nothing_is_predicted_and_nothing_raised(trained, directory, monkeypatch):
    searcher = LocalSearcher(directory, trained.artifact("collection"), CarriedWords())
    monkeypatch.setattr(searcher._meaning, "known", np.zeros(searcher.num_tags, dtype=bool))
    assert searcher.near("puppy").by_meaning == ()
    assert searcher.details(min(RECORDS)).predicted == ()


def suggested(searcher, text, limit=10):
    return [count.tag for count in searcher.suggest(text, limit)]


def test_suggestions_are_the_tags_that_start_so_most_frequent_first(searcher):
    expected = sorted((t for t in TAGS if t.startswith("c")), key=lambda tag: (-len(carrying(tag)), tag))
    assert suggested(searcher, "c") == expected
    assert suggested(searcher, "C", limit=2) == expected[:2]


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("tra", [PHRASE]),
        ('"traffic li', [PHRASE]),
        ("dog tra", [PHRASE]),
        ("猫", ["猫"]),
        ("say", ['say "hi"']),
        ('"say ""h', ['say "hi"']),
        ("", []),
        ("dog ", []),
        ("zzz", []),
        ("\U0010ffff", []),
    ],
)
def test_a_half_typed_query_is_completed(searcher, text, expected):
    assert suggested(searcher, text) == expected


def test_a_tag_that_the_query_has_already_is_not_suggested(searcher):
    assert "car" not in suggested(searcher, "car c")
    assert len(suggested(searcher, "car c", limit=3)) == 3


def test_popular_tags_are_the_most_frequent(searcher):
    counts = searcher.browse("", "frequency", 0, 5)[1]
    every = sorted([*TAGS, PHRASE, NO_VECTOR, *AWKWARD], key=lambda tag: (-len(carrying(tag)), tag))
    assert [count.tag for count in counts] == every[:5]
    assert [count.num_images for count in counts] == [len(carrying(tag)) for tag in every[:5]]


def test_details_hold_the_record_and_predictions_best_first(searcher):
    image_id = sorted(RECORDS)[5]
    details = searcher.details(image_id)
    scores = [each.score for each in details.predicted]
    assert details.record["title"] == RECORDS[image_id].title
    assert details.hit.tags == tuple(normalise_tags(RECORDS[image_id].tags))
    assert scores == sorted(scores, reverse=True)
    assert NO_VECTOR not in [each.tag for each in details.predicted]


@pytest.mark.parametrize(
    "image_id", ["", "0", "f" * 16, "f" * 17, "../../etc/passwd", "猫" * 16, "\0" * 16, "0" * 15 + "\0"]
)
def test_an_image_that_is_not_there_has_no_page_and_no_picture(searcher, image_id):
    assert searcher.details(image_id) is None
    assert searcher.jpeg(image_id) is None


def test_the_picture_is_the_one_of_the_shard(searcher):
    for image_id in RECORDS:
        assert searcher.jpeg(image_id) == b"jpeg of " + image_id.encode()


@pytest.fixture
def own(trained, tmp_path):
    return copy_line(trained, tmp_path)


def test_a_newly_published_generation_takes_over_between_two_requests(own):
    current = CurrentSearcher(own, "small")
    old = current()
    index_again(own, [records()[:-3]])
    directory = published(own)
    new = current()
    assert new.generation == directory.name != old.generation
    assert new.num_images == old.num_images - 3
    assert len(matches(asked(old, "dog", 0, 1000))) == len(carrying("dog"))


def test_while_a_generation_is_opened_others_are_answered_by_the_old_one(own, monkeypatch):
    current = CurrentSearcher(own, "small")
    old, opening, opened = current(), threading.Event(), threading.Event()
    real = current._open

    def slow():
        opening.set()
        opened.wait(20)
        return real()

    monkeypatch.setattr(current, "_open", slow)
    index_again(own, [records()[:-3]])
    published(own)
    first = threading.Thread(target=current)
    first.start()
    opening.wait(20)
    assert current() is old
    opened.set()
    first.join()
    assert current() is not old


def test_threads_that_search_while_generations_change_get_answers_of_one_each(own):
    current = CurrentSearcher(own, "small")
    seen, problems, stop = set(), [], threading.Event()

    def search():
        while not stop.wait(0.005):  # leaves room for the publishing below
            searcher = current()
            answer = asked(searcher, "dog", 0, 1000)
            seen.add((searcher.generation, answer.num_matches))
            if not len(matches(answer)) == answer.num_matches == len(set(ids_of(answer))):
                problems.append(answer)

    threads = [threading.Thread(target=search) for _ in range(8)]
    for thread in threads:
        thread.start()
    totals = {current().generation: asked(current(), "dog", 0, 1).num_matches}
    for gone in (40, 80):
        index_again(own, [records()[:-gone]])
        totals[published(own).name] = sum("dog" in record.tags for record in records()[:-gone])
        current()
    stop.set()
    for thread in threads:
        thread.join()
    assert not problems
    assert seen <= set(totals.items())


def test_a_generation_that_no_request_holds_closes_its_shards(own, monkeypatch):
    closed = []
    monkeypatch.setattr(serve.searchers.local.JpegReader, "close", lambda reader: closed.append(reader))
    searcher = LocalSearcher(
        current_generation(own.artifact("served") / "small", make=""), own.artifact("collection"), None
    )
    del searcher
    assert len(closed) == 1
